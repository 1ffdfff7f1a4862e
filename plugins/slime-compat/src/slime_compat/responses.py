"""What the engine generated, in the format of SGLang's answer to `/generate`. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slime_compat.requests import GenerateRequest
from slime_core.contracts.engine import Generation
from slime_core.turns import TOKEN_VERSIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def response(
    request: GenerateRequest, generation: Generation, tokenizer: PreTrainedTokenizerBase, rid: str, seconds: float
) -> dict[str, Any]:
    """Return the body of SGLang's answer: `text`, `output_ids` and `meta_info`.

    Beside SGLang's fields, `meta_info` names under `weight_versions` the weights of every token: an update may come in between.

    Args:
        rid: the name of the request.
        seconds: how long it took.
    """
    tokens = generation.tokens
    text = _text(tokenizer, tokens, request.skip_special_tokens)
    reason = _finish_reason(request, generation, tokenizer)
    if request.trim_stop and "matched" in reason:
        matched = reason["matched"]
        if isinstance(matched, str):
            text = text.partition(matched)[0]
        else:
            text = _text(tokenizer, tokens[:-1], request.skip_special_tokens)
    versions = generation.weight_versions
    meta: dict[str, Any] = {
        "id": rid,
        "finish_reason": reason,
        "prompt_tokens": len(request.input_ids),
        "completion_tokens": len(tokens),
        "cached_tokens": 0,
        "e2e_latency": seconds,
    }
    if versions:
        meta |= {"weight_version": str(versions[-1]), TOKEN_VERSIONS: list(versions)}
    if request.return_logprob:
        meta["input_token_logprobs"] = []
        meta["output_token_logprobs"] = [
            [log_prob, token, _text(tokenizer, [token], False) if request.text_of_tokens else None]
            for log_prob, token in zip(generation.log_probs, tokens, strict=True)
        ]
    return {"text": text, "output_ids": list(tokens), "meta_info": meta}


def _finish_reason(
    request: GenerateRequest, generation: Generation, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return why the response ended, as SGLang says it. A token that ends a response goes before a string that does."""
    tokens = generation.tokens
    if generation.finish_reason == "length":
        return {"type": "length", "length": len(tokens)}
    if generation.finish_reason == "abort":
        return {"type": "abort", "message": "The request was aborted."}
    if not tokens:
        return {"type": "stop"}
    if tokens[-1] not in request.stop_token_ids | {tokenizer.eos_token_id}:
        text = _text(tokenizer, tokens, False)
        found = [stop for stop in request.stops if stop in text]
        if found:
            return {"type": "stop", "matched": min(found, key=text.find)}
    return {"type": "stop", "matched": tokens[-1]}


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int], skip_special_tokens: bool) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))
