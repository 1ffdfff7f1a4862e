"""The default of `--custom-generate-function-path`: the generate function of a single turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from slime_core.data.tokenizer import load_tokenizer
from slime_core.sample import Sample, Status

if TYPE_CHECKING:
    from slime_core.contracts.engine import Generates
    from slime_rollout_sglang.arguments import RlRunArguments

_STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}


async def generate(args: RlRunArguments, sample: Sample, sampling_params: dict[str, Any], engine: Generates) -> Sample:
    """Return the sample with one response of the engine or, if an aborted call has begun the response, with the rest of it.

    Tokens that are generated here are trained.
    """
    generation = await engine.generate(sample.tokens, sampling_params)
    tokens = [*sample.tokens, *generation.tokens]
    length = sample.response_length + len(generation.tokens)
    response = generation.text
    if sample.response_length and generation.tokens:  # a character may begin in one part and end in the other
        tokenizer, skip = load_tokenizer(args.hf_checkpoint), args.rollout_skip_special_tokens
        response = cast("str", tokenizer.decode(tokens[-length:], skip_special_tokens=skip))
    return sample.changed(
        tokens=tokens,
        response=response if generation.tokens else sample.response,
        response_length=length,
        rollout_log_probs=[*(sample.rollout_log_probs or []), *generation.log_probs],
        weight_versions=[*sample.weight_versions, *generation.weight_versions],
        loss_mask=None if sample.loss_mask is None else [*sample.loss_mask, *(1 for _ in generation.tokens)],
        status=_STATUS[generation.finish_reason],
    )
