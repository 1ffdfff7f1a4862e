"""The recipe `blockwise`: weights in blocks of 128 × 128, inputs and gradients in blocks of 1 × 128 along the direction that is
summed over (DeepSeek-V3, "DeepSeek-V3 Technical Report", 2024; Transformer Engine's `Float8BlockScaling`)."""

from __future__ import annotations

import os

from slime_core.contracts.precision import Hardware
from slime_fp8.arguments import Fp8RunArguments
from slime_fp8.hardware import BLACKWELL, HOPPER
from slime_fp8.operands import Directions, Operands
from slime_fp8.quantise import Format, Quantiser, Scaling
from slime_fp8.recipe import Recipe
from slime_fp8.weight_formats import block_format

FP32_SCALES = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"
"""Transformer Engine's switch: "1" for scales that are any number, "0" for powers of two."""


class Blockwise(Recipe):
    """Blocks of 128 with a scale each.

    On Hopper scales are any float32. Blackwell computes the blocks by MXFP8, whose scales are powers of two. The environment
    variable NVTE_FP8_BLOCK_SCALING_FP32_SCALES, which `environment` gives, decides for the trainer and for stored weights alike;
    without it scales are those of Hopper.
    """

    name = "blockwise"

    def __init__(self, args: Fp8RunArguments, num_layers: int) -> None:
        super().__init__(args, num_layers)
        power_of_two = os.environ.get(FP32_SCALES) == "0"
        self.scaling: Scaling = "power_of_two" if power_of_two else "float32"
        self.weights = block_format(power_of_two=power_of_two)

    def operands(self) -> Operands:
        """Quantise in blocks, inputs and gradients anew for each direction."""

        def lines(format: Format) -> Directions:
            return Directions(Quantiser(format, (1, 128), self.scaling), Quantiser(format, (128, 1), self.scaling))

        weight = self.weights.quantiser
        return Operands(
            {"input": lines("e4m3"), "weight": Directions(weight, weight), "gradient": lines(self.gradients)}
        )

    def environment(self, hardware: Hardware) -> dict[str, str]:
        """Whether scales are any number, as on Hopper, or powers of two, as Blackwell needs."""
        if hardware.capability is None or hardware.capability < HOPPER:
            return {}
        return {FP32_SCALES: "0" if hardware.capability >= BLACKWELL else "1"}

    def torch_refusal(self, hardware: Hardware) -> str:
        """Torch multiplies blocks of 128 on Hopper alone, and only in e4m3."""
        if hardware.capability is not None and hardware.capability >= BLACKWELL:
            return f"torch multiplies blocks of 128 on Hopper alone, not on {hardware.name}."
        return (
            "torch multiplies blocks of 128 in e4m3 alone, not --fp8-format hybrid." if self.gradients == "e5m2" else ""
        )
