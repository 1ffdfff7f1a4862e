"""The hooks by which slime finds the options and components of this distribution. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_rollout_sglang.arguments import EvalSamplingArguments, SamplingArguments

    return [SamplingArguments, EvalSamplingArguments]


_GENERATES = (
    *(
        "apply_chat_template",
        "rollout_temperature",
        "rollout_max_response_len",
        "custom_rm_path",
        "rm_type",
        "group_rm",
    ),
    *("rollout_top_p", "rollout_top_k", "rollout_stop", "rollout_stop_token_ids", "rollout_max_prompt_len"),
    *("apply_chat_template_kwargs?apply_chat_template", "chat_template_date?apply_chat_template"),
    *("dynamic_sampling_filter_path", "max_dynamic_sampling_rounds", "partial_rollout"),
    *("mask_offpolicy_in_partial_rollout", "rollout_sample_filter_path", "rollout_all_samples_process_path"),
    *("custom_generate_function_path", "rollout_skip_special_tokens", "rollout_sample_hook_path"),
    *("image_min_pixels", "image_max_pixels"),
    *("log_passrate", "log_multi_turn", "log_reward_category"),
    *("eval_max_response_len?eval_prompt_data", "eval_temperature?eval_prompt_data"),
    "EvalSamplingArguments?eval_prompt_data",
    *("eval_input_key?eval_prompt_data", "eval_label_key?eval_prompt_data", "eval_tool_key?eval_prompt_data"),
    *("eval_reward_key?eval_prompt_data", "eval_set_options?eval_prompt_data"),
)
"""The options that both rollout functions read."""
_CHECK = "slime_rollout_sglang.checks:check"


@hookimpl
def slime_rollouts() -> dict[str, Lazy]:
    return {
        "rl": Lazy(
            "slime_rollout_sglang.rollout:generate_rollout",
            "responses of an inference engine, scored; with dynamic sampling and partial rollouts",
            aliases=("sglang", "slime.rollout.sglang_rollout.generate_rollout"),
            reads_options=(*_GENERATES, "over_sampling_batch_size", "dynamic_sampling_order"),
            check=_CHECK,
        ),
        "fully_async": Lazy(
            "slime_rollout_sglang.fully_async:generate_rollout",
            "the same without a pause: groups are generated while the trainer trains, with bounded staleness",
            aliases=(
                "slime.rollout.fully_async_rollout.generate_rollout_fully_async",
                "fully_async_rollout.generate_rollout_fully_async",
            ),
            reads_options=(*_GENERATES, "max_staleness"),
            check=_CHECK,
        ),
    }


@hookimpl
def slime_generators() -> dict[str, Lazy]:
    return {
        "single_turn": Lazy(
            "slime_rollout_sglang.generate:generate",
            "one response to the prompt",
            aliases=(
                "slime.rollout.sglang_rollout.generate",
                "slime.rollout.sglang_streaming_rollout.generate_streaming",
            ),
            reads_options=(),
        )
    }


@hookimpl
def slime_dynamic_filters() -> dict[str, Lazy]:
    return {
        "check_reward_nonzero_std": Lazy(
            "slime_rollout_sglang.filters:check_reward_nonzero_std",
            "groups whose rewards are not all equal",
            reads_options=("reward_key",),
            aliases=("slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",),
        ),
        "check_reward_nonzero_std_with_fallback": Lazy(
            "slime_rollout_sglang.filters:check_reward_nonzero_std_with_fallback",
            "the same, but others too where more prompts would have to be taken",
            reads_options=("reward_key",),
            aliases=("slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std_with_fallback",),
        ),
    }
