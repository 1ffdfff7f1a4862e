"""Precision recipes: how matrix products are computed in FP8, and everything else that must agree with that.

One recipe serves all stages of a run: the trainer computes with it, the engine and exports store weights with it, converters
write checkpoints with it. So which weights are quantised, and how, is said in one place. Weights are called by their Hugging
Face names everywhere, such as "model.layers.0.mlp.up_proj.weight".

Importing this module does not import torch; the tensors bring it along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from slime_core.contracts.kind import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments


@dataclass(frozen=True)
class Hardware:
    """What computes.

    Attributes:
        name: for messages, such as "NVIDIA H200" or "CPU".
        capability: CUDA compute capability, such as (9, 0); None without CUDA.
        cuda: version of CUDA that torch was built with, such as (12, 9); None without CUDA.
    """

    name: str
    capability: tuple[int, int] | None = None
    cuda: tuple[int, int] | None = None


@runtime_checkable
class Remembers(Protocol):
    """What `PrecisionRecipe.linear` returns if scales come from earlier steps: a torch module that, in training mode, notes what it
    is given, in buffers. Its scales stand still until `end_step`, so all micro-batches of an optimizer step are computed with
    the same ones, and so is what is computed again in a backward pass."""

    def end_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """An optimizer step was taken: find the scales of the next one.

        Args:
            over_ranks: takes a tensor to the largest of each of its numbers over all ranks, so that their scales stay alike. All
                ranks call it equally often.
        """
        raise NotImplementedError


@runtime_checkable
class RemembersTogether(Remembers, Protocol):
    """What may move the scales of many layers at once: fewer operations for a GPU to start, and one exchange between ranks."""

    @staticmethod
    def end_step_together(layers: Sequence[Any], over_ranks: Callable[[Tensor], Tensor]) -> None:
        """`end_step` of products of this class, all those of a model."""
        raise NotImplementedError


@runtime_checkable
class KeepsWeight(Protocol):
    """What `PrecisionRecipe.linear` returns if it may quantise its weight once for many calls."""

    def weight_unchanged(self) -> AbstractContextManager[None]:
        """A context inside of which the weight does not change. What was made of it may be kept there, and is gone behind it."""
        raise NotImplementedError


class PrecisionRecipe(Protocol):
    """How a model is computed and stored in low precision. Made as `PrecisionRecipe(args, num_layers)`."""

    def __init__(self, args: RunArguments, num_layers: int) -> None:
        """`num_layers` of the model, for options that leave out its first or last ones.

        Raises:
            ArgumentError: the options contradict each other.
        """

    def quantises(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a weight is quantised: products with it, and how it is stored. Only matrices are; routers, heads and
        embeddings are not."""
        raise NotImplementedError

    def linear(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """What computes products with the weight `name` as the hardware would, on any device: called with an input of shape
        (…, K), which may have no rows, and a weight of shape (N, K) it returns (…, N), in the dtype of the input, and its backward pass is in low precision
        too. If it is a torch module, its buffers belong into the training state. It may be one that `Remembers`."""
        raise NotImplementedError

    def hardware_linear(self, name: str, hardware: Hardware) -> Callable[[Tensor, Tensor], Tensor]:
        """The same, computed by the low-precision arithmetic of this hardware, on which the tensors are. It multiplies the numbers
        that `linear` multiplies, and may sum in another order.

        Raises:
            ArgumentError: the hardware has no such arithmetic, with what would do instead.
        """
        raise NotImplementedError

    def row_multiple(self) -> int:
        """The number of tokens of a packed row must be a multiple of this on the hardware."""
        raise NotImplementedError

    def stored(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """What a checkpoint or an engine holds of a weight that is quantised: {name: tensor}, the weight under its own name
        and its scales beside it.

        Raises:
            DataError: the weight has NaN or Inf.
        """
        raise NotImplementedError

    def restored(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, in float32, of what `stored` returned."""
        raise NotImplementedError

    def quantization_config(self, weights: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The entry `quantization_config` in the config.json of a checkpoint with weights of these names and shapes. It
        lists the modules that are not quantised."""
        raise NotImplementedError

    def megatron_config(self) -> dict[str, Any]:
        """Fields of megatron-core's `TransformerConfig` that make Transformer Engine compute this recipe."""
        raise NotImplementedError

    def environment(self, hardware: Hardware) -> dict[str, str]:
        """Environment variables that must be set on this hardware, in trainer and engine."""
        raise NotImplementedError

    def refusal(self, hardware: Hardware) -> str:
        """Why this hardware cannot compute the recipe itself, in a sentence; "" if it can."""
        raise NotImplementedError


KINDS = (Kind("precision_recipe", "slime_precision_recipes", PrecisionRecipe, ("--fp8-recipe",)),)
