"""Checkpoints in megatron-core's `torch_dist` format: every rank writes its part, and any layout reads it.

    FOLDER/metadata.json, common.pt, *.distcp   weights, optimizer state and the number of finished steps
    FOLDER/random_00000.pt, …                   each rank's random states, for a resume on as many ranks

Rows of the vocabulary and heads that fill up a layout are stored with the others, and another layout may have more or fewer of
them: what a state has too many of is not read, and what it lacks is 0. How many are real is stored too, and compared.

Expert parallelism can be changed while both layouts cut experts over ranks; a checkpoint with experts cut over ranks does not
load where they are not, and the other way round: megatron-core numbers the parts of the optimizer differently then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from slime_core.errors import CheckpointError
from slime_core.tensors.random_states import random_states, set_random_states
from slime_megatron import weights
from slime_megatron.model import BuiltModel


def save(folder: Path, model: BuiltModel, wrapped: nn.Module, optimizer: Any, step: int) -> None:
    """Write this rank's part into the existing folder. All ranks call this together."""
    found = _describe(model, wrapped, optimizer, loading=False)
    found |= {"step": step, "sizes": model.sizes}
    dist_checkpointing.save(found, str(folder), validate_access_integrity=False)
    torch.save(random_states(), folder / f"random_{dist.get_rank():05d}.pt")


def load(folder: Path, model: BuiltModel, wrapped: nn.Module, optimizer: Any) -> int:
    """Restore what `save` wrote, and return the number of finished steps.

    Raises:
        CheckpointError: it was written with experts cut over ranks and is read without, or the other way round; or it is of
            another model.
    """
    _prime(optimizer)
    wanted = _describe(model, wrapped, optimizer, loading=True)
    try:
        stored = dist_checkpointing.load_common_state_dict(str(folder)).get("sizes", {})
        if stored != model.sizes:
            raise CheckpointError(
                f"{folder} holds the state of a model with {_words(stored)}, and this one has {_words(model.sizes)}."
            )
        found = dist_checkpointing.load(wanted, str(folder), strict="raise_all")
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder} does not hold the state of this model in this layout: {str(error).splitlines()[0][:400]} A state with "
            "experts cut over ranks (--expert-model-parallel-size) is read only with experts cut over ranks, and one of "
            "--use-distributed-optimizer only with that."
        ) from error
    _inner(wrapped).load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    _separate_steps(optimizer)
    own = folder / f"random_{dist.get_rank():05d}.pt"
    if own.is_file() and len(list(folder.glob("random_*.pt"))) == dist.get_world_size():
        set_random_states(torch.load(own, weights_only=True))
    return int(found["step"])


def _inner(wrapped: nn.Module) -> Any:
    return wrapped.module


def _words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size} {name}" for name, size in sizes.items()) or "sizes that it does not tell"


def _describe(built: BuiltModel, wrapped: nn.Module, optimizer: Any, loading: bool) -> dict[str, Any]:
    """The sharded state dict of model and optimizer."""
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    model = _inner(wrapped).sharded_state_dict(metadata=metadata)
    filled_up = {id(tensor) for tensor in weights.tensors_of_heads(built)}
    for part in nested_values(model):
        if id(getattr(part, "data", None)) in filled_up:  # megatron-core itself does so for the vocabulary
            part.allow_shape_mismatch = True
    with _whole_buckets(optimizer):
        return {"model": model, "optimizer": optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)}


@contextmanager
def _whole_buckets(optimizer: Any) -> Iterator[None]:
    """Let what fills up the end of a bucket of parameters count as a part of it.

    megatron-core puts a rank's state together without it, and then looks for each parameter where it lies with it. Where there
    are several buckets, as under pipeline parallelism with a tied embedding, it would write the numbers of other parameters.
    """
    buffers = [buffer for part in _parts(optimizer) for buffer in getattr(part, "buffers", ())]
    parts = [*buffers, *(bucket for buffer in buffers for bucket in buffer.buckets)]
    before = [part.numel_unpadded for part in parts]
    for part in parts:
        part.numel_unpadded = part.grad_data.numel()
    try:
        yield
    finally:
        for part, size in zip(parts, before, strict=True):
            part.numel_unpadded = size


def _parts(optimizer: Any) -> list[Any]:
    """The optimizers of which a chained one is made: of experts, and of all else."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _prime(optimizer: Any) -> None:
    """Give the optimizer an empty state of the right shapes, into which a stored one can be read: torch's makes it in the first
    step. How many steps each parameter has taken is not stored with it, and comes back with the optimizer's own state."""
    for part in _parts(optimizer):
        inner = part.optimizer
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter] and "betas" in group:
                    inner.state[parameter].update(
                        step=torch.tensor(0.0),
                        exp_avg=torch.zeros_like(parameter),
                        exp_avg_sq=torch.zeros_like(parameter),
                    )
        if isinstance(part, DistributedOptimizer):
            _keep_steps(part)


def _keep_steps(part: Any) -> None:
    """Let a state that is read in shards leave the count of steps as it is: the format does not hold it for each parameter."""
    original = part._set_main_param_and_optimizer_states

    def set_states(parameter: Tensor, tensors: dict[str, Tensor]) -> None:
        present = part._get_main_param_and_optimizer_states(parameter)
        if "step" in present:
            tensors.setdefault("step", present["step"])
        original(parameter, tensors)

    if getattr(part, "slime_keeps_steps", False):
        return
    part._set_main_param_and_optimizer_states, part.slime_keeps_steps = set_states, True


def _separate_steps(optimizer: Any) -> None:
    """Give every parameter a count of steps of its own. After loading, all share one tensor, which torch's Adam would advance
    once for each parameter."""
    for states in _states(optimizer):
        if isinstance(states.get("step"), Tensor):
            states["step"] = states["step"].clone()


def _states(optimizer: Any) -> Iterator[dict[str, Any]]:
    for part in _parts(optimizer):
        yield from part.optimizer.state.values()
