"""The sampling parameters, length limits and seeds of rollouts and evaluations. Pure functions of the options, but that the end
tokens of the model that a run starts from are read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from slime_core.data.context import CONTEXT_IN_WORDS, context_of
from slime_core.data.ends import ends_of_weights
from slime_core.sample import Sample

if TYPE_CHECKING:
    from slime_rollout_sglang.arguments import RlRunArguments

Value = TypeVar("Value")


@dataclass(frozen=True)
class SamplingParameters:
    """How the responses of one rollout or evaluation are sampled.

    Attributes:
        fixed: the `sampling_params` of `InferenceEngine.generate` that are the same for all samples.
        max_response_len: the longest response in tokens.
        max_context_len: the longest prompt and response together in tokens, all turns and what tools wrote included; None for no
            limit.
    """

    fixed: dict[str, Any]
    max_response_len: int
    max_context_len: int | None

    def for_sample(self, sample: Sample, seed: int) -> dict[str, Any]:
        """Return the `sampling_params` with which the response of a sample is generated or continued.

        `max_new_tokens` among them is what the limits leave for this sample, which may be 0 or less.
        """
        room = self.max_response_len - sample.response_length
        if self.max_context_len is not None:
            room = min(room, self.max_context_len - len(sample.tokens))
        return {**self.fixed, "max_new_tokens": room, "seed": seed}


def rollout_parameters(args: RlRunArguments) -> SamplingParameters:
    """Return the sampling parameters of rollouts, which the options `--rollout-*` set."""
    return SamplingParameters(
        _fixed(args, args.rollout_temperature, args.rollout_top_p, args.rollout_top_k),
        args.rollout_max_response_len,
        _context_limit(args)[0],
    )


def eval_parameters(args: RlRunArguments) -> SamplingParameters:
    """Return the sampling parameters of evaluations: the options `--eval-*` or, where one is not given, those of rollouts."""
    fixed = _fixed(
        args,
        _or_default(args.eval_temperature, args.rollout_temperature),
        _or_default(args.eval_top_p, args.rollout_top_p),
        _or_default(args.eval_top_k, args.rollout_top_k),
    )
    if args.eval_min_new_tokens:
        fixed["min_new_tokens"] = args.eval_min_new_tokens
    return SamplingParameters(
        fixed,
        _or_default(args.eval_max_response_len, args.rollout_max_response_len),
        _context_limit(args, evaluation=True)[0],
    )


def text_parameters(args: RlRunArguments) -> dict[str, Any]:
    """Return how SGLang shall write the text of a response, which a generate function that reaches the engine in SGLang's
    format is told: what ended it stays. An engine that is called directly has no such parameters."""
    return {
        "skip_special_tokens": args.rollout_skip_special_tokens,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }


def prompt_limit(args: RlRunArguments, evaluation: bool = False) -> tuple[int | None, str]:
    """Return (the longest prompt in tokens or None, what sets it). A prompt must leave room for one token."""
    prompt: tuple[int | None, str] = (args.rollout_max_prompt_len, "--rollout-max-prompt-len")
    if evaluation and args.eval_max_prompt_len is not None:
        prompt = (args.eval_max_prompt_len, "--eval-max-prompt-len")
    limits = [
        (length - reserved, option)
        for (length, option), reserved in ((prompt, 0), (_context_limit(args, evaluation), 1))
        if length is not None
    ]
    return min(limits, default=(None, ""))


def _context_limit(args: RlRunArguments, evaluation: bool = False) -> tuple[int | None, str]:
    """Return (the longest prompt and response together, what sets it): an option, or the model's context where that is shorter."""
    given: tuple[int | None, str] = (args.rollout_max_context_len, "--rollout-max-context-len")
    if evaluation and args.eval_max_context_len is not None:
        given = (args.eval_max_context_len, "--eval-max-context-len")
    model = context_of(args.hf_checkpoint) if args.hf_checkpoint else None
    return given if given[0] is not None and (model is None or given[0] <= model) else (model, CONTEXT_IN_WORDS)


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2^48) for what `parts` name; it is the same in every process and Python version."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _fixed(args: RlRunArguments, temperature: float, top_p: float, top_k: int) -> dict[str, Any]:
    fixed: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    if args.rollout_stop:
        fixed["stop"] = list(args.rollout_stop)
    stops = dict.fromkeys((*(args.rollout_stop_token_ids or ()), *ends_of_weights(args)))
    if stops or args.rollout_stop_token_ids is not None:
        fixed["stop_token_ids"] = list(stops)
    return fixed


def _or_default(value: Value | None, default: Value) -> Value:
    return default if value is None else value
