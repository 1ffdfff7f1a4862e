"""The checks of every kind, each a function of a `Subject` whose docstring begins with the promise that it checks."""

from __future__ import annotations

from slime_core.testing.behaviour import backends, commands, data, engines, losses, masks, rewards, rollouts, trackers
from slime_core.testing.subject import Check

CHECKS: dict[str, list[Check]] = {
    "command": commands.COMMAND,
    "converter": data.CONVERTER,
    "data_source": data.DATA_SOURCE,
    "buffer_pop": data.BUFFER_POP,
    "loss_mask": masks.LOSS_MASK,
    "rollout": rollouts.ROLLOUT,
    "engine": engines.ENGINE,
    "generator": rollouts.GENERATOR,
    "dynamic_filter": rewards.DYNAMIC_FILTER,
    "sample_filter": rewards.SAMPLE_FILTER,
    "reward": rewards.REWARD,
    "loss": losses.LOSS,
    "train_backend": backends.TRAIN_BACKEND,
    "tracker": trackers.TRACKER,
}
"""By kind, in the order in which they run."""
