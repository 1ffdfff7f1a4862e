"""The recipe `mxfp8`: blocks of 32 along the direction that is summed over, with scales that are powers of two in a byte (OCP
Microscaling Formats (MX) v1.0, 2023; Transformer Engine's `MXFP8BlockScaling`)."""

from __future__ import annotations

from slime_core.errors import ArgumentError
from slime_fp8.arguments import MXFP8_HYBRID, Fp8RunArguments
from slime_fp8.operands import Directions, Operands
from slime_fp8.quantise import Quantiser
from slime_fp8.recipe import Recipe
from slime_fp8.weight_formats import FORMATS


class Mxfp8(Recipe):
    """Every 32 numbers have a scale, for each direction one of their own. Gradients are e4m3; e5m2 is refused.

    Raises:
        ArgumentError: `--fp8-format hybrid`.
    """

    name = "mxfp8"
    tokens = 32
    weights = FORMATS["mxfp8"]

    def __init__(self, args: Fp8RunArguments, num_layers: int) -> None:
        if args.fp8_format == "hybrid":
            raise ArgumentError(MXFP8_HYBRID)
        super().__init__(args, num_layers)

    def operands(self) -> Operands:
        """Quantise lines of 32, every matrix anew for each direction."""
        lines = Directions(Quantiser("e4m3", (1, 32), "e8m0"), Quantiser("e4m3", (32, 1), "e8m0"))
        return Operands({"input": lines, "weight": lines, "gradient": lines})
