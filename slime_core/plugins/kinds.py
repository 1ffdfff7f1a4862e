"""The kinds of components: which hook provides them, what contract they keep, which options choose them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slime_core import contracts, hookspecs


@dataclass(frozen=True)
class Kind:
    """One kind of component.

    Attributes:
        hook: the provider hook in `slime_core.hookspecs`.
        contract: the function or class in `slime_core.contracts` that a component is compared with.
        options: the options whose value is a component's name, first the one that messages mention.
        extras: keyword parameters that a component may ask for by naming them.
        alternative: a second contract that will do as well.
    """

    hook: str
    contract: Callable[..., Any]
    options: tuple[str, ...]
    extras: tuple[str, ...] = ()
    alternative: Callable[..., Any] | None = None


KINDS: dict[str, Kind] = {
    "command": Kind("slime_commands", contracts.command, ("slime COMMAND",)),
    "converter": Kind("slime_converters", contracts.convert, ("--from",)),
    "data_source": Kind("slime_data_sources", contracts.DataSource, ("--data-source-path",), ("buffer_pop",)),
    "buffer_pop": Kind("slime_buffer_pops", contracts.buffer_pop, ("--buffer-filter-path",)),
    "loss_mask": Kind("slime_loss_masks", contracts.loss_mask, ("--loss-mask-type",)),
    "rollout": Kind(
        "slime_rollouts",
        contracts.generate_rollout,
        ("--rollout-function-path", "--eval-function-path"),
        ("plugins", "engine", "background"),
    ),
    "engine": Kind("slime_engines", contracts.InferenceEngine, ("--rollout-engine",)),
    "generator": Kind("slime_generators", contracts.generate, ("--custom-generate-function-path",), ("engine",)),
    "dynamic_filter": Kind("slime_dynamic_filters", contracts.dynamic_filter, ("--dynamic-sampling-filter-path",)),
    "sample_filter": Kind("slime_sample_filters", contracts.sample_filter, ("--rollout-sample-filter-path",)),
    "reward": Kind(
        "slime_rewards",
        contracts.reward,
        ("--rm-type", "--custom-rm-path"),
        alternative=contracts.group_reward,
    ),
    "all_samples_process": Kind(
        "slime_all_samples_processes", contracts.all_samples_process, ("--rollout-all-samples-process-path",)
    ),
    "reward_post_process": Kind(
        "slime_reward_post_processes", contracts.reward_post_process, ("--custom-reward-post-process-path",)
    ),
    "rollout_log": Kind("slime_rollout_logs", contracts.rollout_log, ("--custom-rollout-log-function-path",)),
    "eval_rollout_log": Kind(
        "slime_eval_rollout_logs", contracts.eval_rollout_log, ("--custom-eval-rollout-log-function-path",)
    ),
    "sample_converter": Kind(
        "slime_sample_converters", contracts.convert_samples, ("--custom-convert-samples-to-train-data-path",)
    ),
    "advantage": Kind(
        "slime_advantages", contracts.advantages, ("--advantage-estimator", "--custom-advantage-function-path")
    ),
    "importance_weight": Kind("slime_importance_weights", contracts.importance_weight, ("--custom-tis-function-path",)),
    "loss": Kind(
        "slime_losses", contracts.loss, ("--loss-type", "--custom-loss-function-path"), ("importance_weight",)
    ),
    "train_backend": Kind("slime_train_backends", contracts.TrainBackend, ("--train-backend",)),
    "tracker": Kind("slime_trackers", contracts.Tracker, ("--tracker",)),
}

OBSERVERS = tuple(
    name
    for name in vars(hookspecs)
    if name.startswith("slime_")
    and name != "slime_argument_groups"
    and name not in {kind.hook for kind in KINDS.values()}
)
"""The hooks that are told something."""
