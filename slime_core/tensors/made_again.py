"""Tensors that the backward pass makes again in place of keeping them. `slime_core.tensors.matrix_products` asks for what a product reads.

What a norm or a gated activation gives is read by one product or several, which keep it for their gradient by the weight. It is made
in two passes over what is kept in any case, by the same operations, and so bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ATTRIBUTE = "slime_recipe"


class Recipe:
    """How a tensor is made again of its parts, which it does not hold: they are kept by who reads the tensor, as autograd keeps tensors.

    Args:
        make: makes it, without a gradient.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None
        self._readers = 0

    def read(self) -> None:
        """Count a reader, which calls `again` once."""
        self._readers += 1

    def again(self, *parts: Tensor) -> Tensor:
        """The tensor, made of its parts as the reader has kept them. It stays until the last of the readers has asked."""
        made = self._make(*parts) if self._made is None else self._made
        self._readers -= 1
        self._made = made if self._readers > 0 else None
        return made


def with_recipe(made: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Note of `made` that `make(*parts)` is the same; nothing where no gradient is wanted. The parts must stay as they are."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        setattr(made, _ATTRIBUTE, (Recipe(make), tuple(part.detach() for part in parts)))
    return made


def recipe_of(tensor: Tensor) -> tuple[Recipe, tuple[Tensor, ...]] | None:
    """What was noted of a tensor, and its parts; views and copies of it have nothing."""
    found: tuple[Recipe, tuple[Tensor, ...]] | None = getattr(tensor, _ATTRIBUTE, None)
    return found
