"""`--advantage-estimator rloo`: the other samples of the group as baseline."""

from __future__ import annotations

from typing import Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import group_advantages


def rloo(args: Any, inputs: AdvantageInputs) -> AdvantageOutputs:
    """r - mean of the group's other rewards, the same for every token (RLOO, arXiv 2402.14740)."""
    advantages = group_advantages("rloo", args, inputs)
    return tokens.outputs(args, inputs, tokens.trained(inputs, advantages[inputs.sample_index]))
