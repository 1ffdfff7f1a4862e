"""`Generation`: what an inference engine answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Generation:
    """One response.

    Attributes:
        tokens: R new token ids, the stop token included if one ended the response.
        log_probs: R floats, log-prob of each token in the softmax of logits / temperature over the whole vocabulary
            (temperature 1 for greedy decoding). top_p and top_k restrict the choice and do not renormalise, so a trainer
            computes the same numbers.
        finish_reason: "stop" (a stop token or string), "length" (the limit) or "abort" (ended by `abort`; what there is).
        weight_versions: R entries, which weights produced each token.
        text: the tokens decoded, special tokens left out.
    """

    tokens: list[int]
    log_probs: list[float]
    finish_reason: Literal["stop", "length", "abort"]
    weight_versions: list[int] = field(default_factory=list)
    text: str = ""
