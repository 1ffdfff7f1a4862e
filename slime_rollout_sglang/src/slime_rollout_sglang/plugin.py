"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.arguments import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_rollout_sglang.arguments import EvalSamplingArguments, SamplingArguments

    return [SamplingArguments, EvalSamplingArguments]


@hookimpl
def slime_rollouts() -> dict[str, Lazy]:
    return {
        "sglang": Lazy(
            "slime_rollout_sglang.rollout:generate_rollout",
            "responses of an inference engine, scored; with dynamic sampling and partial rollouts",
            aliases=("slime.rollout.sglang_rollout.generate_rollout",),
        )
    }


@hookimpl
def slime_generators() -> dict[str, Lazy]:
    return {
        "single_turn": Lazy(
            "slime_rollout_sglang.generate:generate",
            "one response to the prompt",
            aliases=("slime.rollout.sglang_rollout.generate",),
        )
    }


@hookimpl
def slime_dynamic_filters() -> dict[str, Lazy]:
    return {
        "check_reward_nonzero_std": Lazy(
            "slime_rollout_sglang.filters:check_reward_nonzero_std",
            "groups whose rewards are not all equal",
            aliases=("slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",),
        )
    }
