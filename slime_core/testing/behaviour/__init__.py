"""The checks of every kind, each a function of a `Subject` whose docstring begins with the promise that it checks."""

from __future__ import annotations

from slime_core.testing.behaviour import (
    advantages,
    after_rollout,
    backends,
    checkpoint_formats,
    commands,
    data,
    engines,
    importance_weights,
    losses,
    masks,
    pg_loss_reducers,
    precision,
    rewards,
    rollouts,
    trackers,
)
from slime_core.testing.subject import Check

CHECKS: dict[str, list[Check]] = {
    "command": commands.COMMAND,
    "checkpoint_conversion": commands.CONVERSION,
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
    "all_samples_process": after_rollout.ALL_SAMPLES_PROCESS,
    "sample_hook": after_rollout.SAMPLE_HOOK,
    "rollout_data_postprocess": after_rollout.ROLLOUT_DATA_POSTPROCESS,
    "reward_post_process": after_rollout.REWARD_POST_PROCESS,
    "rollout_log": after_rollout.ROLLOUT_LOG,
    "eval_rollout_log": after_rollout.EVAL_ROLLOUT_LOG,
    "sample_converter": after_rollout.SAMPLE_CONVERTER,
    "advantage": advantages.ADVANTAGE,
    "importance_weight": importance_weights.IMPORTANCE_WEIGHT,
    "pg_loss_reducer": pg_loss_reducers.PG_LOSS_REDUCER,
    "loss": losses.LOSS,
    "precision_recipe": precision.PRECISION_RECIPE,
    "checkpoint_format": checkpoint_formats.CHECKPOINT_FORMAT,
    "train_backend": backends.TRAIN_BACKEND,
    "tracker": trackers.TRACKER,
}
"""By kind, in the order in which they run. A kind that has none here is compared with its contract alone."""
