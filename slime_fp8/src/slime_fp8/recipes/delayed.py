"""The recipe `delayed`: one scale for each tensor, from the largest magnitudes of earlier steps (Transformer Engine's
`DelayedScaling`). A tensor is read once instead of twice; the price are numbers that overflow when magnitudes grow."""

from __future__ import annotations

from typing import Any

from slime_fp8.linear import Arithmetic, RememberingLinear
from slime_fp8.operands import DelayedOperands
from slime_fp8.recipe import Recipe
from slime_fp8.weight_formats import FORMATS


class Delayed(Recipe):
    """Every matrix has one scale, which was found in earlier steps; 1 in the first step.

    Engines and checkpoints have no earlier steps: weights are stored with a scale of their own, as under `tensorwise`.
    """

    name = "delayed"
    weights = FORMATS["tensor"]

    def operands(self) -> DelayedOperands:
        """Quantise whole matrices by the history of this layer."""
        args = self.args
        return DelayedOperands(
            {"input": "e4m3", "weight": "e4m3", "gradient": self.gradients},
            args.fp8_amax_history_len,
            args.fp8_margin,
            args.fp8_amax_compute_algo,
        )

    def products(self, arithmetic: Arithmetic) -> RememberingLinear:
        """A new module that computes products with one weight, and remembers magnitudes."""
        return RememberingLinear(self.operands(), arithmetic)

    def megatron_config(self) -> dict[str, Any]:
        """Fields of megatron-core's `TransformerConfig`."""
        return super().megatron_config() | {
            "fp8_margin": self.args.fp8_margin,
            "fp8_amax_history_len": self.args.fp8_amax_history_len,
            "fp8_amax_compute_algo": self.args.fp8_amax_compute_algo,
        }
