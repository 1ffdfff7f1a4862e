"""`--advantage-estimator grpo` (and `gspo`, `cispo`, whose losses differ and whose advantages do not)."""

from __future__ import annotations

from typing import Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import group_advantages


def grpo(args: Any, inputs: AdvantageInputs) -> AdvantageOutputs:
    """(r - mean) / (std + 1e-6) over the group, the same for every token (DeepSeekMath, arXiv 2402.03300, §4.1.2)."""
    advantages = group_advantages("grpo", args, inputs)
    return tokens.outputs(args, inputs, tokens.trained(inputs, advantages[inputs.sample_index]))
