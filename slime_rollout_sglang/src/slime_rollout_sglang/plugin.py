"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.arguments import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_rollout_sglang.arguments import EvalSamplingArguments, SamplingArguments
    from slime_rollout_sglang.sglang.arguments import SGLangArguments

    return [SamplingArguments, EvalSamplingArguments, SGLangArguments]


@hookimpl
def slime_rollouts() -> dict[str, Lazy]:
    return {
        "sglang": Lazy(
            "slime_rollout_sglang.rollout:generate_rollout",
            "responses of an inference engine, scored; with dynamic sampling and partial rollouts",
            aliases=("slime.rollout.sglang_rollout.generate_rollout",),
        ),
        "fully_async": Lazy(
            "slime_rollout_sglang.fully_async:generate_rollout",
            "the same without a pause: groups are generated while the trainer trains, with bounded staleness",
            aliases=("fully_async_rollout.generate_rollout_fully_async",),
        ),
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


@hookimpl
def slime_engines() -> dict[str, Lazy]:
    return {
        "sglang": Lazy(
            "slime_rollout_sglang.sglang.engine:SGLangEngine",
            "SGLang servers, started or external, behind SGLang's router",
        )
    }
