"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_rollout_sft.arguments import SftArguments

    return [SftArguments]


@hookimpl
def slime_commands() -> dict[str, Lazy]:
    return {"data": Lazy("slime_rollout_sft.cli:main", "convert data files, preview loss masks")}


@hookimpl
def slime_rollouts() -> dict[str, Lazy]:
    return {
        "sft": Lazy(
            "slime_rollout_sft.rollout:generate_rollout",
            "conversations from a file, tokenised and masked",
            aliases=("slime.rollout.sft_rollout.generate_rollout",),
            reads_options=(
                *("image_min_pixels", "image_max_pixels", "text_only"),
                *("SftArguments", "apply_chat_template_kwargs", "chat_template_date"),
                *("eval_generate", "custom_rm_path?eval_generate", "rm_type?eval_generate"),
                *("group_rm?eval_generate", "reward_key?eval_generate", "eval_reward_key?eval_generate"),
                *("eval_max_response_len?eval_generate", "eval_temperature?eval_generate"),
                *("eval_input_key?eval_prompt_data", "eval_label_key?eval_prompt_data"),
                *("eval_tool_key?eval_prompt_data", "eval_set_options?eval_prompt_data"),
            ),
            check="slime_rollout_sft.checks:check",
        )
    }


@hookimpl
def slime_loss_masks() -> dict[str, Lazy]:
    def generator(function: str, summary: str, *aliases: str) -> Lazy:
        return Lazy(f"slime_rollout_sft.masks.generators:{function}", summary, aliases, reads_options=())

    return {
        "auto": generator("auto", "every turn of the assistant, for any template", "qwen", "qwen3", "qwen3_5"),
        "last_turn": generator("last_turn", "only the assistant's last turn"),
        "distill_qwen": generator("distill_qwen", "the last turn as the data has it, reasoning included"),
    }


@hookimpl
def slime_converters() -> dict[str, Lazy]:
    def converter(function: str, summary: str, *aliases: str) -> Lazy:
        return Lazy(f"slime_rollout_sft.converters:{function}", summary, aliases)

    return {
        "openhermes": converter("openhermes", "conversations of {from, value}", "sharegpt"),
        "alpaca": converter("alpaca", "instruction, input, output"),
        "gsm8k": converter("gsm8k", "question, answer with #### number"),
        "gsm8k-multiturn": converter("gsm8k_multiturn", "GSM8K socratic: one exchange per sub-question"),
        "verl": converter("verl", "prompt with response or reward_model.ground_truth"),
        "messages": converter("messages", "messages already: checked, other columns kept"),
    }
