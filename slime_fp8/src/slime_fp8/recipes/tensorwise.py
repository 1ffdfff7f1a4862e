"""The recipe `tensorwise`: one scale for each tensor, from its own largest magnitude (Transformer Engine's `Float8CurrentScaling`)."""

from __future__ import annotations

from slime_fp8.operands import Directions, Operands
from slime_fp8.quantise import Quantiser
from slime_fp8.recipe import Recipe
from slime_fp8.weight_formats import FORMATS


class Tensorwise(Recipe):
    """Every matrix has one scale, which maps its largest magnitude to the largest number of the format."""

    name = "tensorwise"
    weights = FORMATS["tensor"]

    def operands(self) -> Operands:
        """Quantise whole matrices."""
        forwards, backwards = Quantiser("e4m3"), Quantiser(self.gradients)
        return Operands(
            {
                "input": Directions(forwards, forwards),
                "weight": Directions(forwards, forwards),
                "gradient": Directions(backwards, backwards),
            }
        )
