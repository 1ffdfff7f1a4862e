"""`--advantage-estimator dr_grpo`: GRPO without the division that favours groups of little spread."""

from __future__ import annotations

from typing import Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import group_advantages


def dr_grpo(args: Any, inputs: AdvantageInputs) -> AdvantageOutputs:
    """r - mean over the group, the same for every token (Dr. GRPO, arXiv 2503.20783). The paper's loss is
    `--constant-length-loss`."""
    advantages = group_advantages("dr_grpo", args, inputs)
    return tokens.outputs(args, inputs, tokens.trained(inputs, advantages[inputs.sample_index]))
