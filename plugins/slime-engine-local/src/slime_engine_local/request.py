"""One prompt and the response so far. Made by `LocalEngine`, advanced by the scheduler."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Literal

from slime_engine_local.cache import Chain
from slime_engine_local.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort"]
_numbers = count()


@dataclass(eq=False)
class Request:
    """One prompt and the response so far.

    Attributes:
        limit: tokens after which the response ends.
        decode: token ids to text, special tokens included; looks for stop strings.
        hold: see `Scheduler.hold`.
        name: what `abort` calls it.
        done: why the response ended, once it has. Cancelling it makes the request leave.
        log_probs, versions: of each token; see `slime_core.contracts.engine.Generation`.
        chain: where its keys and values are while it runs.
        number: counts requests; the largest is the youngest.
    """

    prompt: list[int]
    params: SamplingParams
    limit: int
    decode: Callable[[Sequence[int]], str]
    hold: Callable[[int], None]
    name: str | None = None
    done: Future[FinishReason] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    chain: Chain | None = None
    number: int = field(default_factory=_numbers.__next__)

    def __post_init__(self) -> None:
        seed = self.params.seed
        self._key = str(secrets.randbits(64) if seed is None else seed).encode()

    def draw(self) -> float:
        """The random number in [0, 1) of the next token. It depends on the seed and on the token's place in the sequence
        alone, so a response that was interrupted goes on as it would have. 48 bits, so that its product with a sum of
        probabilities stays below that sum."""
        place = len(self.prompt) + len(self.tokens)
        return int.from_bytes(blake2b(b"%b:%d" % (self._key, place), digest_size=6).digest()) / 2**48

    def banned(self) -> frozenset[int]:
        """Tokens that the next one must not be."""
        return self.params.stop_token_ids if len(self.tokens) < self.params.min_new_tokens else frozenset()

    def add(self, token: int, log_prob: float, version: int) -> None:
        """The next token. Ends the request where it must end."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.versions.append(version)
        if len(self.tokens) >= self.params.min_new_tokens and (
            token in self.params.stop_token_ids or self._completes_stop_string()
        ):
            self.finish("stop")
        elif len(self.tokens) >= self.limit:
            self.finish("length")

    def _completes_stop_string(self) -> bool:
        if not self.params.stop:
            return False
        # A token is at least one byte. Some more show how the first of them reads in its context.
        longest = max(len(text.encode()) for text in self.params.stop)
        tail = self.decode(self.tokens[-longest - 4 :])
        return any(text in tail for text in self.params.stop)

    # `done` may be cancelled at any moment by whoever waits for it.

    def finish(self, reason: FinishReason) -> None:
        """End the response. `hold` is called with 1 before whoever waits for it can know; that one calls it with -1."""
        self.hold(1)
        try:
            self.done.set_result(reason)
        except InvalidStateError:
            self.hold(-1)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.done.set_exception(error)
