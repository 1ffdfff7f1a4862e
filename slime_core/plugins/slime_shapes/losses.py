"""Losses of slime: `loss(args, batch, logits, sum_of_sample_mean) -> (loss, metrics)`. They compute log-probs from logits, which a
backend here has done in its own way; so they cannot be called, and are told what to change."""

from __future__ import annotations

from typing import Any

from slime_core.plugins.slime_shapes.parameters import parameters


def what_to_change(component: Any) -> str:
    """What to change in a loss of slime's shape; "" for any other."""
    names = list(parameters(component))
    if len(names) < 4 and "logits" not in names:
        return ""
    return (
        " It has the shape of slime's losses, (args, batch, logits, sum_of_sample_mean). Here a loss is given no logits but the "
        "log-probs that come of them: write it as (args, inputs); read inputs.log_probs (and inputs.entropy) in place of logits, "
        "inputs.advantages, inputs.old_log_probs, … in place of batch, and inputs.reduce in place of sum_of_sample_mean; return "
        "LossOutputs(loss, metrics), and say with @reads what it reads besides log-probs and advantages."
    )
