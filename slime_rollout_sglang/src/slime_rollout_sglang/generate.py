"""The generator of a single turn, the default of `--custom-generate-function-path`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slime_core.data.tokenizer import load_tokenizer
from slime_core.sample import Sample, Status

_STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """One response of the engine or, where an aborted call has left some of it, the rest of it."""
    generation = await engine.generate(sample.tokens, sampling_params)
    tokens = [*sample.tokens, *generation.tokens]
    length = sample.response_length + len(generation.tokens)
    response = generation.text
    if sample.response_length and generation.tokens:  # a character may begin in one part and end in the other
        response = load_tokenizer(args.hf_checkpoint).decode(tokens[-length:], skip_special_tokens=True)
    return replace(
        sample,
        tokens=tokens,
        response=response if generation.tokens else sample.response,
        response_length=length,
        rollout_log_probs=[*(sample.rollout_log_probs or []), *generation.log_probs],
        weight_versions=[*sample.weight_versions, *generation.weight_versions],
        loss_mask=None if sample.loss_mask is None else [*sample.loss_mask, *(1 for _ in generation.tokens)],
        status=_STATUS[generation.finish_reason],
    )
