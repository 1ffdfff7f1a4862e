"""`Generation`: what an inference engine answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Generation:
    """One response.

    Attributes:
        tokens: R new token ids, the stop token included if one ended the response.
        log_probs: R floats, log-prob of each token under the distribution it was sampled from.
        finish_reason: "stop" (a stop token), "length" (the limit) or "abort" (partial).
        weight_versions: R entries, which weights produced each token.
        text: the tokens decoded, special tokens left out.
    """

    tokens: list[int]
    log_probs: list[float]
    finish_reason: Literal["stop", "length", "abort"]
    weight_versions: list[int] = field(default_factory=list)
    text: str = ""
