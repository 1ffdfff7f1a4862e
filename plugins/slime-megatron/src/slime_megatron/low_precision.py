"""FP8, emulated: megatron-core's linear layers compute by the run's precision recipe. Called by the backend.

A recipe knows weights by their Hugging Face names, and quantises whole matrices: a scale may be that of a tensor, and blocks do
not end where a rank's part does. So a layer puts together, from all tensor-parallel ranks, the matrices that a checkpoint has
(`linear_qkv` holds three of them), and each rank computes the whole products and keeps its part of them. That costs time and
memory, and gives the very numbers of one process. Weights, gradients and the optimizer's state stay cut as they were.

    weight on this rank     →  matrices of the checkpoint     gradient: this rank's part
    outputs of the layer    →  this rank's part               gradient: put together from all ranks

Every rank has the whole gradient of a layer's input then, not a share that is added up over ranks. Classes are changed after
building, since latent attention takes no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor, nn

from slime_core.contracts.precision import PrecisionRecipe, Remembers
from slime_core.errors import ArgumentError
from slime_core.tensors.low_precision import is_precision_state
from slime_core.tensors.low_precision_products import Products
from slime_megatron.low_precision_experts import keep_micro_batches_apart
from slime_megatron.model import BuiltModel
from slime_megatron.names import Layout
from slime_megatron.rank_parts import all_shards, first_rank_s, own_shard, to_first_rank
from slime_megatron.weights import file_side, whole_model_name


class _Layer(nn.Module):
    """A linear layer that computes by a recipe.

    Attributes:
        precision: the products with its matrices.
        files: what those are called in a checkpoint.
        layout: how they make the weight; see `slime_megatron.names`.
        parts: rows of the input that belong to different micro-batches, which are quantised apart; None: all to one.
    """

    precision: Products
    files: tuple[str, ...]
    layout: Layout
    parts: list[int] | None
    tp_group: Any
    explicit_expert_comm: bool
    is_expert: bool

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """The whole matrices (N, K) of a checkpoint, from this rank's part of the weight."""
        return self.layout.part(self.layout.unshard(all_shards(weight, self.tp_group)))

    def products(self, rows: Tensor, matrices: list[Tensor]) -> list[Tensor]:
        """(T, K) whole rows → (T, N) for each matrix."""
        apart = [rows] if self.parts is None else torch.split(rows, self.parts)
        return [
            torch.cat([product(own, matrix) for own in apart])
            for product, matrix in zip(self.precision, matrices, strict=True)
        ]


class LowPrecisionColumn(_Layer, ColumnParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """One whose outputs are cut over tensor-parallel ranks."""

    def _forward_impl(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, sequence_parallel: bool = False, **_: Any
    ) -> Tensor:
        group = self.tp_group
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=False, group=group)
        elif self.explicit_expert_comm:  # whoever brings tokens to experts adds up the gradients of all ranks
            input = to_first_rank(input, group)
        outputs = self.products(input.flatten(0, -2), self.matrices(weight))
        whole, ranks = self.layout.join([output.t() for output in outputs]), group.size()
        own = own_shard([self.layout.shard(whole, rank, ranks) for rank in range(ranks)], group).t()
        output = own.reshape(*input.shape[:-1], own.shape[-1])
        return output if bias is None else output + bias


class LowPrecisionRow(_Layer, RowParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """One whose inputs are cut over tensor-parallel ranks."""

    def _forward_impl(self, input: Tensor, weight: Tensor, **_: Any) -> Tensor:
        (rows,) = self.layout.part(self.layout.unshard(all_shards(input.flatten(0, -2), self.tp_group)))
        (output,) = self.products(rows, self.matrices(weight))
        output = first_rank_s(output, self.tp_group)  # whoever calls this adds up the outputs of all ranks
        return output.reshape(*input.shape[:-1], output.shape[-1])


def swap_linears(model: BuiltModel, recipe: PrecisionRecipe) -> None:
    """Have the linear layers of a model compute by a recipe, unless the recipe leaves them out. Tokens that fill up a row are
    zeros in all layers from then on, so that no scale knows of them.

    Raises:
        ArgumentError: a matrix that the recipe quantises is no weight of such a layer, so that training would compute with other
            numbers than engine and exports; or the recipe quantises nothing in this pipeline stage.
    """
    chosen: list[tuple[Any, Layout, dict[str, tuple[int, ...]]]] = []
    others: list[str] = []
    for name, parameter in model.module.named_parameters():
        place, _, kind = name.rpartition(".")
        rule, files = model.names.of(file_side(model, whole_model_name(model, name)))
        layer: Any = model.module.get_submodule(place)
        shapes = _shapes(rule.layout, parameter, getattr(layer, "tp_group", None))
        if not any(recipe.quantises(file, shape) for file, shape in zip(files, shapes, strict=True)):
            continue
        known = place.startswith("decoder.") and kind == "weight"
        if known and type(layer) in (ColumnParallelLinear, RowParallelLinear):
            chosen.append((layer, rule.layout, dict(zip(files, shapes, strict=True))))
        else:
            others += files
    if others:
        raise ArgumentError(
            f"{len(others)} weights cannot be computed in low precision by megatron-core, as they are not those of a linear layer: "
            f"{', '.join(others[:3])}{', …' if len(others) > 3 else ''}. Leave them out by --fp8-modules-to-not-convert; then "
            "engine and exports leave them out too."
        )
    if not chosen:
        raise ArgumentError(
            f"The precision recipe leaves out every linear layer of pipeline stage "
            f"{parallel_state.get_pipeline_model_parallel_rank()}. Check --fp8-modules-to-not-convert and "
            "--first-last-layers-bf16, choose fewer stages, or leave --fp8-format out."
        )
    for layer, layout, matrices in chosen:
        layer.__class__ = LowPrecisionColumn if type(layer) is ColumnParallelLinear else LowPrecisionRow
        layer.precision = Products(recipe, matrices).to(layer.weight.device).train(layer.training)
        layer.files, layer.layout, layer.parts = tuple(matrices), layout, None
    keep_micro_batches_apart(model.module)
    model.fill_up_with_zeros()


def low_precision_layers(module: nn.Module) -> Iterator[tuple[str, _Layer]]:
    """Those of a model, with their names."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, _Layer))


def end_step(module: nn.Module) -> None:
    """An optimizer step was taken: let scales that come from earlier steps move. All ranks call this at the same time."""
    for _, layer in low_precision_layers(module):
        of_expert = layer.is_expert
        group = (
            parallel_state.get_expert_data_parallel_group if of_expert else parallel_state.get_data_parallel_group
        )()
        for product in layer.precision:
            if isinstance(product, Remembers):
                product.end_step(partial(_largest, group=group))


def describe_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Let the state of a model hold what products remember under the names of a checkpoint, so that any layout can read it.

    Args:
        state: the sharded state dict of `module`, which is changed.
    """
    if not any(map(is_precision_state, state)):
        return
    for name, layer in low_precision_layers(module):
        of_expert = layer.is_expert
        group = (
            parallel_state.get_expert_data_parallel_group if of_expert else parallel_state.get_data_parallel_group
        )()
        copy = (0, layer.tp_group.rank(), group.rank())
        for number, (file, product) in enumerate(zip(layer.files, layer.precision, strict=True)):
            for key, tensor in product.state_dict(keep_vars=True).items():
                stored = ShardedTensor.from_rank_offsets(f"{STORED}{file}.{key}", tensor, replica_id=copy)
                state[f"{name}.precision.{number}.{key}"] = stored


STORED = "precision."
"""What names of such numbers begin with, in the state on disk."""


def _shapes(layout: Layout, parameter: Tensor, group: Any) -> list[tuple[int, ...]]:
    """Shapes of the matrices that make a weight, of which this rank has a part."""
    part = torch.empty(parameter.shape, device="meta")
    whole = layout.unshard([part] * (group.size() if group is not None else 1))
    return [tuple(matrix.shape) for matrix in layout.part(whole)]


def _largest(values: Tensor, group: Any) -> Tensor:
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
    return values
