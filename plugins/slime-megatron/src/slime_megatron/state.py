"""Checkpoints in megatron-core's `torch_dist` format: every rank writes its part, and any layout reads it.

    FOLDER/metadata.json, common.pt, *.distcp   weights, optimizer state and the number of finished steps; with LoRA what is
                                                trained in place of all weights
    FOLDER/kept_NAME/…                          the weights of a copy that the model keeps, like those above
    FOLDER/random_00000.pt, …                   each rank's random states, for a resume on as many ranks

Rows of the vocabulary and heads that fill up a layout are stored with the others, and another layout may have more or fewer of
them: what a state has too many of is not read, and what it lacks is 0. How many are real is stored too, and compared.

Where experts are cut over ranks megatron-core has two optimizers, one of experts and one of all else, and else a single one. The
tensors have the same names in both, and what is stored beside them is put together anew (`_for_these_parts`), so that expert
parallelism may change too. That holds for the distributed optimizer; the other one numbers its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from slime_core.errors import CheckpointError
from slime_core.tensors.kept_weights import KeptWeights
from slime_core.tensors.random_states import random_states, set_random_states
from slime_core.tensors.stored import load_stored
from slime_megatron import lora, low_precision, versions, weights
from slime_megatron.model import BuiltModel
from slime_megatron.optimizer import parts_of
from slime_megatron.torch_dist import GROUPS

if TYPE_CHECKING:
    from slime_megatron.saving import Saver


def save(
    folder: Path,
    model: BuiltModel,
    wrapped: nn.Module,
    optimizer: Any,
    step: int,
    saver: Saver,
    background: bool = False,
) -> None:
    """Write this rank's part into the existing folder. All ranks call this together.

    Args:
        background: see `slime_megatron.saving.Saver.save`.
    """
    _prime(optimizer)  # before the first step there is nothing that megatron-core could describe
    found = _describe(model, wrapped, optimizer, loading=False)
    found |= {"step": step, "sizes": model.sizes, GROUPS: model.module.config.num_query_groups}
    random = random_states()
    saver.save(folder, found, background)
    torch.save(random, folder / f"random_{dist.get_rank():05d}.pt")


def load(folder: Path, model: BuiltModel, wrapped: nn.Module, optimizer: Any) -> int:
    """Restore what `save` wrote, and return the number of finished steps. What the options say of the optimizer, such as Adam's
    betas, is that of this run.

    Raises:
        CheckpointError: it is of another model, or of an optimizer that this one cannot go on from.
    """
    _prime(optimizer)
    versions.advise_no_other_format()
    versions.execute_nothing()
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
            f"{folder} does not hold the state of this model in this layout: {str(error).splitlines()[0][:400]} A state of "
            "--use-distributed-optimizer is read only with that, and one without it only where --expert-model-parallel-size is "
            "1 in both runs or above 1 in both; adapters are read with the --lora-rank and --target-modules that they were made "
            "with, a part that is trained with the same lists of names (--only-train-params-name-list, --freeze-params-name-list), and "
            "scales of earlier steps with the --fp8-recipe."
        ) from error
    _inner(wrapped).load_state_dict(found["model"], strict=not _inner(wrapped).trains_adapters)
    with _own_settings(optimizer):
        optimizer.load_state_dict(_for_these_parts(folder, found["optimizer"], optimizer))
    _separate_steps(optimizer)
    own = folder / f"random_{dist.get_rank():05d}.pt"
    if own.is_file() and len(list(folder.glob("random_*.pt"))) == dist.get_world_size():
        set_random_states(load_stored(own))
    return int(found["step"])


def save_kept(folder: Path, model: BuiltModel, wrapped: nn.Module, kept: KeptWeights, saver: Saver) -> None:
    """Write this rank's part of the copies of weights that the model keeps. All ranks call this together."""
    for name in kept.copies:
        own = folder / f"kept_{name}"
        if dist.get_rank() == 0:
            own.mkdir()
        dist.barrier()
        with kept.in_use(name):
            saver.save(own, {"model": _describe_model(model, wrapped)}, background=False)


def load_kept(folder: Path, model: BuiltModel, wrapped: nn.Module, kept: KeptWeights) -> None:
    """Bring back the copies that `save_kept` wrote, and no other."""
    kept.copies.clear()
    for own in sorted(folder.glob("kept_*")):

        def fill(own: Path = own) -> None:
            found = dist_checkpointing.load({"model": _describe_model(model, wrapped)}, str(own))
            _inner(wrapped).load_state_dict(found["model"], strict=not _inner(wrapped).trains_adapters)

        kept.read(own.name.removeprefix("kept_"), fill)


def _inner(wrapped: nn.Module) -> Any:
    return wrapped.module


def _words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size} {name}" for name, size in sizes.items()) or "sizes that it does not tell"


def _describe(built: BuiltModel, wrapped: nn.Module, optimizer: Any, loading: bool) -> dict[str, Any]:
    """The sharded state dict of model and optimizer."""
    model, metadata = _describe_model(built, wrapped), _metadata(wrapped)
    with _whole_buckets(optimizer):
        return {"model": model, "optimizer": optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)}


def _metadata(wrapped: nn.Module) -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,  # names do not tell which of two optimizers a tensor is of
        # Else layers are stored as one tensor, and the optimizer has nothing of those that are frozen.
        "non_homogeneous_layers": _inner(wrapped).freezes_weights,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _describe_model(built: BuiltModel, wrapped: nn.Module) -> dict[str, Any]:
    """The sharded state dict of the model."""
    model = lora.trained_alone(_inner(wrapped), _inner(wrapped).sharded_state_dict(metadata=_metadata(wrapped)))
    low_precision.describe_state(_inner(wrapped), model)
    filled_up = {id(tensor) for tensor in weights.tensors_of_heads(built)}
    for part in nested_values(model):
        if id(getattr(part, "data", None)) in filled_up:  # megatron-core itself does so for the vocabulary
            part.allow_shape_mismatch = True
    return model


@contextmanager
def _whole_buckets(optimizer: Any) -> Iterator[None]:
    """Let what fills up the end of a bucket of parameters count as a part of it.

    megatron-core puts a rank's state together without it, and then looks for each parameter where it lies with it. Where there
    are several buckets, as under pipeline parallelism with a tied embedding, it would write the numbers of other parameters.
    """
    buffers = [buffer for part in parts_of(optimizer) for buffer in getattr(part, "buffers", ())]
    parts = [*buffers, *(bucket for buffer in buffers for bucket in buffer.buckets)]
    before = [part.numel_unpadded for part in parts]
    for part in parts:
        part.numel_unpadded = part.grad_data.numel()
    try:
        yield
    finally:
        for part, size in zip(parts, before, strict=True):
            part.numel_unpadded = size


_SETTINGS = ("optimizer", "param_groups")
"""Where an optimizer keeps what is no tensor: the distributed one, or one with float32 copies, and any other."""


def _for_these_parts(folder: Path, stored: dict[Any, Any], optimizer: Any) -> dict[Any, Any]:
    """What was stored of one optimizer, or of two, for as many as there are here.

    The tensors have been read into the parts that are here. Beside them the distributed optimizer stores settings by groups of
    parameters, as far as the first rank has them; all but the number of steps follow from the options.

    Raises:
        CheckpointError: the numbers differ, and the optimizer is not the distributed one.
    """
    parts = parts_of(optimizer)
    there = [part for part in (stored, stored.get(0), stored.get(1)) if part and not part.keys().isdisjoint(_SETTINGS)]
    if not all(isinstance(part, DistributedOptimizer) for part in parts):
        if len(there) == len(parts):
            return stored
        raise CheckpointError(
            f"{folder} was saved by {len(there)} optimizer(s), and here are {len(parts)}: experts are cut over ranks "
            "(--expert-model-parallel-size) in one of the two runs alone. Resume with the old number, or save with "
            "--use-distributed-optimizer, whose state any number of ranks can read."
        )
    (step,) = {group["step"] for part in there for group in part["optimizer"]["param_groups"]}
    own = [stored] if len(parts) == 1 else [stored.get(number, {}) for number in range(len(parts))]
    for part, found in zip(parts, own, strict=True):
        settings = part.state_dict()["optimizer"]
        for group in settings["param_groups"]:
            group["step"] = step
        found |= {"optimizer": settings, "param_state_sharding_type": there[0]["param_state_sharding_type"]}
    return own[0] if len(parts) == 1 else dict(enumerate(own))


@contextmanager
def _own_settings(optimizer: Any) -> Iterator[None]:
    """Let the settings of all groups of parameters be behind this context what they were before it, but for the number of steps:
    a state brings those that it was saved with."""
    before = [{k: v for k, v in group.items() if k not in ("params", "step")} for group in _groups(optimizer)]
    yield
    for group, settings in zip(_groups(optimizer), before, strict=True):
        group.update(settings)


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return [group for part in parts_of(optimizer) for group in part.optimizer.param_groups]


def _prime(optimizer: Any) -> None:
    """Give the optimizer an empty state of the right shapes, into which a stored one can be read: torch's makes it in the first
    step. How many steps each parameter has taken is not stored with it, and comes back with the optimizer's own state."""
    for part in parts_of(optimizer):
        inner = part.optimizer
        if part.config.use_precision_aware_optimizer:  # Transformer Engine's knows the types of its own
            part.init_state_fn(inner, part.config)
            continue
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter] and "betas" in group:
                    inner.state[parameter].update(
                        step=torch.tensor(0.0, device=parameter.device if group.get("fused") else None),
                        exp_avg=torch.zeros_like(parameter),
                        exp_avg_sq=torch.zeros_like(parameter),
                    )
        if isinstance(part, DistributedOptimizer):
            _keep_steps(part)
            if not inner.state:  # of experts, where a stage has none
                part.state_dict = lambda: {"optimizer": {"param_groups": []}}
                part.load_state_dict = lambda state: None


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
    for part in parts_of(optimizer):
        yield from part.optimizer.state.values()
