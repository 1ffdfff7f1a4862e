"""Options of delayed scaling, under Megatron's names and with its defaults, and combinations that are refused. The options that
choose a recipe are those of all recipes, and the core's: `slime_core.arguments.groups.precision`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from slime_core.another_machine import is_for_another_machine
from slime_core.arguments import RunArguments
from slime_core.arguments.groups.precision import PrecisionArguments
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.runtime.hardware import visible_hardware
from slime_fp8.hardware import NEEDS, refusal, without_hardware

MXFP8_HYBRID = (
    "--fp8-recipe mxfp8 with --fp8-format hybrid: gradients in e5m2 are known to diverge under MXFP8, whose blocks of 32 need "
    "mantissa rather than range. Give --fp8-format e4m3."
)


class DelayedScalingArguments(ArgumentGroup):
    """Delayed scaling (--fp8-recipe delayed)"""

    fp8_margin: int = option(
        0, "Halve the scales of delayed scaling so many times, as a reserve for larger numbers.", ge=0
    )
    fp8_amax_history_len: int = option(
        1, "How many steps delayed scaling remembers the largest magnitude of a tensor.", ge=1
    )
    fp8_amax_compute_algo: Literal["most_recent", "max"] = option(
        "most_recent",
        "What delayed scaling makes of the magnitudes that it remembers: the latest one, or the largest one.",
    )

    @model_validator(mode="after")
    def _refuse_what_diverges(self) -> DelayedScalingArguments:
        if isinstance(self, PrecisionArguments) and (self.fp8_recipe, self.fp8_format) == ("mxfp8", "hybrid"):
            raise ValueError(MXFP8_HYBRID)
        return self

    @model_validator(mode="after")
    def _refuse_what_no_gpu_here_computes(self) -> DelayedScalingArguments:
        """Where training ranks may be on other machines, they find out."""
        if not isinstance(self, RunArguments) or not self.fp8_format or self.fp8_emulation:
            return self
        here = not is_for_another_machine(self) and self.actor_num_nodes == 1
        if here and self.fp8_recipe in NEEDS:
            hardware = visible_hardware()
            if why := refusal(self.fp8_recipe, hardware):
                raise ValueError(without_hardware(self.fp8_recipe, why, hardware))
        return self


class Fp8RunArguments(RunArguments, DelayedScalingArguments):
    """The run's options with those of this package, for type checkers."""
