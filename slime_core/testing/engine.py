"""`EchoEngine`: an inference engine without a model, for rollouts and generators under test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slime_core.engine import Generation


class EchoEngine:
    """Answers with the last tokens of the prompt, in their order, each with a probability of one half.

    Keeps the contract of `slime_core.contracts.InferenceEngine`, so what a rollout or generator makes of the answers can
    be checked.

    Attributes:
        version: of the newest weights that it was handed.
    """

    def __init__(self, args: Any) -> None:
        self.version = 0

    async def generate(self, input_ids: Sequence[int], sampling_params: dict[str, Any]) -> Generation:
        """The last `max_new_tokens` (16 if not given) prompt tokens, up to the first of `stop_token_ids`."""
        limit = sampling_params.get("max_new_tokens", 16)
        stops = set(sampling_params.get("stop_token_ids") or ())
        tokens = list(input_ids)[-limit:]
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), None)
        tokens = tokens[:end]
        return Generation(
            tokens=tokens,
            log_probs=[math.log(0.5)] * len(tokens),
            finish_reason="length" if end is None else "stop",
            weight_versions=[self.version] * len(tokens),
            text=" ".join(map(str, tokens)),
        )

    def update_weights(self, weights: Any, version: int) -> None:
        """Remember the version; there is nothing else to take over."""
        self.version = version
