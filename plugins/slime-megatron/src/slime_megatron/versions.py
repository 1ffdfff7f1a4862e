"""What differs between the versions of megatron-core that this package works with: 0.16 for Python 3.11, 0.19 for later ones.
`slime_megatron.model`, `.saving` and `.state` call this; no other file asks for a version.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron.core.tensor_parallel.random as recomputation
import megatron.core.transformer.multi_latent_attention as latent
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import common, filesystem_async
from megatron.core.dist_checkpointing.strategies import torch as torch_dist
from torch import Tensor
from torch.distributed.checkpoint._traverse import set_element

from slime_core.tensors.dcp_metadata import PlainReader
from slime_core.tensors.stored import load_stored

_FILES_OF_A_RANK = 2
"""As many `.distcp` files each rank writes at most: 0.16's number. 0.19 would write a single one."""


def leave_values_as_they_are() -> None:
    """Let latent attention give the values of packed sequences to the core attention in their own size.

    0.19 makes them as wide as the queries, for kernels that want that: values that are narrower get zeros, which
    costs time, and values that are wider are cut off, which is wrong.
    """
    if hasattr(latent, "_prepare_mla_core_attention_value"):
        latent._prepare_mla_core_attention_value = _as_they_are


def take_latent_layers_as_given() -> None:
    """Let latent attention be built of the layers that it is given.

    0.19 asks for Transformer Engine's projection with a norm of its own where queries have no latents and thus no norm.
    """
    if hasattr(latent.MLASelfAttention, "_resolve_qk_norm_config"):
        latent.MLASelfAttention._resolve_qk_norm_config = lambda attention, given: vars(given)


def compile_nothing_on_cpus() -> None:
    """Let what is computed again for `--recompute-modules` be copied to where the first result was, where there is no GPU.

    0.19 has the two share memory, by a piece of C++ that each rank compiles in its first step, with a compiler that may be missing.
    """
    if hasattr(recomputation, "_get_share_storage") and not torch.cuda.is_available():
        recomputation._get_share_storage = lambda: _copy


def write_states_by(write: Callable[..., None], results: Callable[[], Any]) -> None:
    """Let megatron-core write the files of this rank by `write`, and pass on what that found by what `results` makes.

    Args:
        write: it has the parameters of `FileSystemWriterAsync.write_preloaded_data_multiproc`, which in 0.19 is called
            `write_preloaded_data_multithread`.
    """
    writer: Any = filesystem_async.FileSystemWriterAsync
    _replace(writer, ("write_preloaded_data_multiproc", "write_preloaded_data_multithread"), staticmethod(write))
    _replace(filesystem_async, ("_get_write_results_queue", "get_write_results_queue"), results)


def execute_nothing() -> None:
    """Let megatron-core read states without executing what a file says: it would unpickle the folder's `.metadata`, and each
    object that is no tensor. What it needs of them are numbers, text, tensors, and lists and dicts of these."""
    torch_dist.FileSystemReader = PlainReader
    torch_dist.CachedMetadataFileSystemReader = PlainReader
    torch_dist.MCoreLoadPlanner.load_bytes = _load_plain


def files_as_before() -> dict[str, Any]:
    """What `dist_checkpointing.save` must be told so that every version writes the files that 0.16 writes, and reads those of
    every other one.

    0.19 would put what is no tensor among the tensors, where 0.16 does not look for it, and asks for NVIDIA's resiliency
    extension to write in the background.
    """
    if "async_strategy" not in inspect.signature(dist_checkpointing.save).parameters:
        return {}
    return {"sharded_strategy": _CommonApart(thread_count=_FILES_OF_A_RANK), "async_strategy": "mcore"}


def advise_no_other_format() -> None:
    """Let 0.19 not warn, at each load and at the first save, of the format that is chosen here."""
    common.logger.disabled = True  # it tells of nothing else
    torch_dist._logged_mcore_async_deprecation = True


class _CommonApart(torch_dist.TorchDistSaveShardedStrategy):  # type: ignore[misc]  # megatron-core has no types
    """Writes what is no tensor into `common.pt`."""

    def async_save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Any, async_strategy: str = "mcore") -> Any:
        """What 0.19's `dist_checkpointing.save` calls, also for a state that is written at once."""
        found = sharded_state_dict.pop("common_state").data
        if dist.get_rank() == 0:
            torch.save(found, Path(checkpoint_dir) / common.COMMON_STATE_FNAME)
        return super().async_save(sharded_state_dict, checkpoint_dir, async_strategy)


def _load_plain(planner: Any, item: Any, value: io.BytesIO) -> None:
    """In place of `DefaultLoadPlanner.load_bytes`."""
    name, found = item.dest_index.fqn, load_stored(value.getvalue())
    if planner.flatten_state_dict:
        set_element(planner.original_state_dict, planner.mappings[name], found)
    else:
        planner.state_dict[name] = found


def _replace(owner: Any, names: tuple[str, ...], by: Any) -> None:
    """Replace the one attribute that this version has of those names.

    Raises:
        AttributeError: it has none, and what is there would be used in silence.
    """
    present = [name for name in names if hasattr(owner, name)]
    if not present:
        raise AttributeError(f"this megatron-core's {owner.__name__} has none of {', '.join(names)}")
    setattr(owner, present[0], by)


def _copy(emptied: Tensor, computed: Tensor) -> None:
    whole = computed.untyped_storage()
    emptied.untyped_storage().resize_(whole.size())
    emptied.untyped_storage().copy_(whole)


def _as_they_are(attention: Any, query: Any, value: Any, packed: Any) -> tuple[Any, bool, int | None, int | None]:
    size = None if value is None else value.shape[-1]
    return value, False, size, size
