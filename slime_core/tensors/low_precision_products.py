"""The products of layers that stand for several weights of a checkpoint, such as the experts of a layer: one for each weight, by a
precision recipe or, where that leaves the weight out, in high precision. Called by `slime_core.tensors.low_precision_experts` and
by train backends that fuse weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from slime_core.contracts.precision import Hardware, PrecisionRecipe


class Products(nn.ModuleList):
    """The products with some weights, in their order: each takes (…, K) and a weight (N, K), and gives (…, N).

    Args:
        recipe: computes those with weights that it quantises.
        weights: {Hugging Face name: shape}.
        hardware: whose arithmetic computes; None: the recipe is emulated.
    """

    def __init__(
        self, recipe: PrecisionRecipe, weights: Mapping[str, tuple[int, ...]], hardware: Hardware | None = None
    ) -> None:
        low = (
            product_of(recipe, name, hardware) if recipe.quantises(name, shape) else F.linear
            for name, shape in weights.items()
        )
        super().__init__([product if isinstance(product, nn.Module) else _Function(product) for product in low])


def product_of(recipe: PrecisionRecipe, name: str, hardware: Hardware | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The product with the weight `name`, by the arithmetic of hardware or emulated (None)."""
    return recipe.linear(name) if hardware is None else recipe.hardware_linear(name, hardware)


class _Function(nn.Module):
    """A product without a state of its own."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        return self._function(input, weight)
