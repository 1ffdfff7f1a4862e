"""The options of the rollout functions `rl` and `fully_async`. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import field_validator

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option

TopK = TypeVar("TopK", int, int | None)


class SamplingArguments(ArgumentGroup):
    """Rollouts that generate"""

    rollout_top_p: float = option(
        1.0, "Sample from the likeliest tokens that together have this probability.", gt=0, le=1
    )
    rollout_top_k: int = option(-1, "Sample from so many likeliest tokens; -1 is all of them.", ge=-1)
    rollout_stop: list[str] | None = option(None, "Texts that end a response.")
    rollout_stop_token_ids: list[int] | None = option(
        None, "Tokens that end a response, besides the checkpoint's own end tokens."
    )
    rollout_max_prompt_len: int | None = option(
        None,
        "Longest prompt in tokens. Longer ones are left out, replaced by the next, and counted. Default: what "
        "--rollout-max-context-len, or the model's context, leaves room for.",
        ge=1,
    )
    over_sampling_batch_size: int | None = option(
        None,
        "How many prompts are sampled at a time, until --rollout-batch-size groups have passed. Default: that number.",
        ge=1,
    )
    dynamic_sampling_filter_path: str | None = option(
        None, "Which finished groups are trained on: a name ('check_reward_nonzero_std') or import path."
    )
    dynamic_sampling_order: Literal["finished", "prompt"] = option(
        "finished",
        "In which order groups are accepted: as their responses are finished, which stops earliest; or as their prompts "
        "come, which makes the batch independent of timing and free of a preference for short responses.",
    )
    max_dynamic_sampling_rounds: int = option(
        10,
        "How often prompts are sampled for one rollout. After that, the best of the groups that were filtered out fill "
        "it up, with a warning.",
        ge=1,
    )
    max_staleness: int = option(
        1,
        "How many versions older than the weights that are trained the weights may be that generated a token. With 0 "
        "nothing is generated while the trainer trains.",
        ge=0,
    )
    partial_rollout: bool = option(
        False,
        "Keep what has been generated when sampling stops early: such groups go to the buffer, and the next rollout "
        "continues them. Without it they go back as fresh prompts.",
    )
    mask_offpolicy_in_partial_rollout: bool = option(
        False, "Do not train tokens that an earlier rollout generated.", when="partial_rollout"
    )
    rollout_sample_filter_path: str | None = option(
        None, "Which samples of a finished rollout are trained: a name or import path."
    )
    rollout_all_samples_process_path: str | None = option(
        None, "What sees all groups of a rollout, filtered ones included: a name or import path."
    )
    custom_generate_function_path: str | None = option(
        None, "How a prompt becomes a response: a name or import path. Default: one response of the engine."
    )

    rollout_skip_special_tokens: bool = option(
        True,
        "Leave special tokens such as <|im_end|> out of the text of responses. They stay among their tokens either way.",
    )
    log_passrate: bool = option(
        False,
        "Log pass@k of rollouts, k = 1, 2, 4, …: the chance that one of k responses to a prompt has the reward 1. Evaluations log it "
        "by themselves where rewards are 0 and 1, and with this option always.",
        affects_result=False,
    )
    log_multi_turn: bool = option(
        False,
        "Log the lengths of responses with and without what tools wrote, and metadata's round_number where generate functions "
        "set it.",
        affects_result=False,
    )
    log_reward_category: str | None = option(
        None,
        "Log which share of samples has each value that rewards, which are dicts, have under this key, such as why an answer is "
        "wrong.",
        affects_result=False,
    )

    @field_validator("rollout_top_k")
    @classmethod
    def _rollout_top_k_is_not_zero(cls, value: int) -> int:
        return _not_zero(value)


class EvalSamplingArguments(ArgumentGroup):
    """Evaluation that generates"""

    n_samples_per_eval_prompt: int = option(1, "Samples per evaluation prompt.", ge=1, affects_result=False)
    eval_top_p: float | None = option(None, "Default: --rollout-top-p.", gt=0, le=1, affects_result=False)
    eval_top_k: int | None = option(None, "Default: --rollout-top-k.", ge=-1, affects_result=False)
    eval_max_prompt_len: int | None = option(
        None, "Longest evaluation prompt in tokens. Default: --rollout-max-prompt-len.", ge=1, affects_result=False
    )
    eval_max_context_len: int | None = option(
        None,
        "Longest prompt and response of an evaluation in tokens. Default: --rollout-max-context-len.",
        ge=2,
        affects_result=False,
    )
    eval_min_new_tokens: int | None = option(
        None, "Shortest response of an evaluation in tokens.", ge=0, affects_result=False
    )

    @field_validator("eval_top_k")
    @classmethod
    def _eval_top_k_is_not_zero(cls, value: int | None) -> int | None:
        return _not_zero(value)


class RlRunArguments(RunArguments, SamplingArguments, EvalSamplingArguments):
    """The options of a run together with those of this package, for annotations."""


def _not_zero(value: TopK) -> TopK:
    if value == 0:
        raise ValueError("expected -1 (all tokens) or a number of at least 1")
    return value
