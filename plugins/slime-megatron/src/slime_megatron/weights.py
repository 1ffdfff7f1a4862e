"""Weights between Hugging Face names, whole, and this rank's shards of megatron-core's, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor

from slime_core.errors import CheckpointError
from slime_core.tensors.ranks import in_time
from slime_megatron.model import BuiltModel
from slime_megatron.names import Attention, Heads, Split, as_in_rules

_LAYER = re.compile(r"(?<=decoder\.layers\.)\d+")
_EXPERT = re.compile(r"(?<=local_experts\.)\d+")


def whole_model_name(model: BuiltModel, name: str) -> str:
    """The name of one of this rank's tensors with the numbers of the whole model."""
    experts = model.module.config.num_moe_experts
    first_expert = 0
    if experts:
        own = experts // parallel_state.get_expert_model_parallel_world_size()
        first_expert = parallel_state.get_expert_model_parallel_rank() * own
    name = _LAYER.sub(lambda found: str(int(found[0]) + model.layer_offset), as_in_rules(name))
    return _EXPERT.sub(lambda found: str(int(found[0]) + first_expert), name)


def own_tensors(model: BuiltModel) -> Iterator[tuple[str, Tensor]]:
    """(name with the numbers of the whole model, tensor) of everything that travels with a model: its parameters, and the
    buffers that choose experts, which `named_parameters` leaves out."""
    module = model.module
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if name.endswith("expert_bias"))
    for name, tensor in (*module.named_parameters(), *buffers):
        yield whole_model_name(model, name), tensor


def mark_split_weights(model: BuiltModel) -> None:
    """Tell megatron-core which weights are cut over tensor-parallel ranks. It takes all others for copies and counts them on
    the first rank alone, in the norm of the gradient; it knows by itself only where it has initialised them."""
    for name, tensor in own_tensors(model):
        rule, _ = model.names.of(file_side(model, name))
        if isinstance(rule.layout, Split) and not hasattr(tensor, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(tensor, True, rule.layout.dim, 1)


def tensors_of_heads(model: BuiltModel) -> Iterator[Tensor]:
    """This rank's weights and biases that attention's heads have parts of."""
    for name, tensor in own_tensors(model):
        if isinstance(model.names.of(file_side(model, name))[0].layout, Attention | Heads):
            yield tensor


def file_side(model: BuiltModel, name: str) -> str:
    """The name whose rule a weight has: the last stage's copy of a tied embedding is the embedding."""
    tied = name == "output_layer.weight" and model.module.share_embeddings_and_output_weights
    return "embedding.word_embeddings.weight" if tied else name


def _cut(name: str) -> tuple[int, int]:
    """(this rank's place, the number of ranks) among those that share a weight."""
    if ".experts." in name:
        return (
            parallel_state.get_expert_tensor_parallel_rank(),
            parallel_state.get_expert_tensor_parallel_world_size(),
        )
    return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()


@torch.no_grad()
def load(model: BuiltModel, read: Callable[[str], Tensor]) -> None:
    """Fill this rank's tensors.

    Args:
        read: gives a tensor of the checkpoint by its name; raises `KeyError` if it has none.

    Raises:
        CheckpointError: the checkpoint lacks a weight, or one has another shape.
    """
    for name, tensor in own_tensors(model):
        rule, names = model.names.of(file_side(model, name))
        try:
            whole = rule.layout.join([read(own) for own in names])
        except KeyError as error:
            if rule.optional:
                continue
            raise CheckpointError(f"The checkpoint has no weight {error.args[0]!r}, which {name} is made of.") from None
        shard = rule.layout.shard(whole, *_cut(name))
        if shard.shape != tensor.shape:
            raise CheckpointError(
                f"{', '.join(names)} of the checkpoint give {name} the shape {tuple(shard.shape)}, but the configuration "
                f"asks for {tuple(tensor.shape)}."
            )
        tensor.copy_(shard)


@dataclass(frozen=True)
class _Piece:
    """A weight that some ranks have parts of.

    Attributes:
        owners: the ranks of the world that have its shards, in their order; of several copies one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    owners: tuple[int, ...]


def gather(model: BuiltModel, tensors: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """All weights under their Hugging Face names, whole, on every rank. All ranks iterate together; only one weight is whole
    at a time.

    Args:
        tensors: what to gather in place of the weights, such as their gradients, by the names of `own_tensors`.
    """
    own = dict(own_tensors(model) if tensors is None else tensors)
    if model.module.share_embeddings_and_output_weights:
        own.pop("output_layer.weight", None)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        for name, tensor in own.items():
            yield from model.names.to_file(name, tensor.detach())
        return
    rank, device = dist.get_rank(), next(model.module.parameters()).device
    for piece in _pieces(own):
        rule, _ = model.names.of(piece.name)
        shards = []
        for owner in piece.owners:
            if owner == rank:
                shard = own[piece.name].detach().contiguous()
            else:
                shard = torch.empty(piece.shape, dtype=piece.dtype, device=device)
            with in_time("a weight of theirs"):
                dist.broadcast(shard, src=owner)
            shards.append(shard)
        yield from model.names.to_file(piece.name, rule.layout.unshard(shards))


def _pieces(own: Mapping[str, Tensor]) -> list[_Piece]:
    """Every weight of the whole model with the ranks that have its shards, the same list on all ranks."""
    mine = {name: (tuple(t.shape), t.dtype, *_cut(name)) for name, t in own.items()}
    everybody: list[dict[str, tuple[tuple[int, ...], torch.dtype, int, int]]] = [
        {} for _ in range(dist.get_world_size())
    ]
    with in_time("the names of their weights"):
        dist.all_gather_object(everybody, mine)
    found: dict[str, dict[int, int]] = {}
    about: dict[str, tuple[tuple[int, ...], torch.dtype, int]] = {}
    for rank, tensors in enumerate(everybody):
        for name, (shape, dtype, place, size) in tensors.items():
            found.setdefault(name, {}).setdefault(place, rank)
            about[name] = (shape, dtype, size)
    pieces = []
    for name, owners in found.items():
        shape, dtype, size = about[name]
        pieces.append(_Piece(name, shape, dtype, tuple(owners[place] for place in range(size))))
    return pieces
