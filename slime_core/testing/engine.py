"""`EchoEngine`: an inference engine without a model, for rollouts and generators under test."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from slime_core.contracts.engine import Generation
from slime_core.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments


class EchoEngine:
    """Answers with the last tokens of the prompt, in their order, each with a probability of one half.

    It keeps the contract of `slime_core.contracts.engine.InferenceEngine`, so what a rollout or generator makes of the
    answers can be checked. It lets other coroutines run before each token, so that they may abort it.

    Args:
        args: of a run; none of them is read.

    Attributes:
        version: the version of the newest weights that it was handed.
    """

    def __init__(self, args: RunArguments | None) -> None:
        self.version = 0
        self._running: dict[int, str | None] = {}  # number of the request → its id
        self._aborted: set[int] = set()
        self._count = 0
        self._closed = False

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        request_id: str | None = None,
        images: Sequence[bytes] | None = None,
    ) -> Generation:
        """Return the last `max_new_tokens` (16 if not given) tokens of the prompt, up to the first of `stop_token_ids`
        that comes after `min_new_tokens`. Images change nothing."""
        number = self._count = self._count + 1
        self._running[number] = request_id
        try:
            return await self._answer(number, list(input_ids), sampling_params)
        finally:
            del self._running[number]
            self._aborted.discard(number)

    async def _answer(self, number: int, prompt: list[int], sampling_params: dict[str, Any]) -> Generation:
        stops = set(sampling_params.get("stop_token_ids") or ())
        shortest = sampling_params.get("min_new_tokens", 0)
        tokens: list[int] = []
        finish_reason: Literal["stop", "length", "abort"] = "length"
        for token in prompt[-sampling_params.get("max_new_tokens", 16) :]:
            await asyncio.sleep(0)
            if self._closed:
                raise PluginError("The engine was closed.")
            if number in self._aborted:
                finish_reason = "abort"
                break
            tokens.append(token)
            if token in stops and len(tokens) >= shortest:
                finish_reason = "stop"
                break
        return Generation(
            tokens=tokens,
            log_probs=[math.log(0.5)] * len(tokens),
            finish_reason=finish_reason,
            weight_versions=[self.version] * len(tokens),
            text=" ".join(map(str, tokens)),
        )

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests, or all, and return when none of them is running any more."""
        self._aborted |= {n for n, name in self._running.items() if request_ids is None or name in request_ids}
        while self._aborted:
            await asyncio.sleep(0)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Remember the version; no weight is read."""
        self.version = version

    def close(self) -> None:
        """Let requests that are not finished fail."""
        self._closed = True
