"""`Request`: one prompt and the response so far. Made by `LocalEngine`, advanced by the scheduler."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Literal

from slime_core.contracts.engine import ScoredToken
from slime_core.rollout.stop_strings import completes_stop_string
from slime_engine_local.cache import CachedSequence
from slime_engine_local.sampling import SamplingParams
from slime_engine_local.vision import NO_IMAGES, Shown

FinishReason = Literal["stop", "length", "abort"]
_numbers = count()
NO_LIMIT = 2**31
"""`top_k` where all tokens may be chosen."""


class _Ended:
    """Whether a response has ended: read in every step, where asking the future would take its lock."""

    def __init__(self) -> None:
        self.so = False

    def __call__(self, done: Future[FinishReason]) -> None:
        self.so = True


@dataclass(eq=False)
class Request:
    """One prompt and the response so far.

    Attributes:
        limit: the number of tokens at which the response ends.
        decode: turns token ids into text with special tokens included; used to find stop strings.
        hold: `Scheduler.hold`.
        shown: its images.
        special: tokens that must not be chosen at all.
        name: the name by which `abort` finds the request.
        tell: is called with every token, on the scheduler's thread; None: nobody wants to know before the end.
        likeliest: how many tokens `ScoredToken.likeliest` lists.
        done: resolves to the reason why the response ended. Cancelling it removes the request.
        tokens, log_probs, versions: one entry per generated token, as in `slime_core.contracts.engine.Generation`.
        sequence: where the keys and values are while the request runs; None while it waits.
        number: counts requests; the youngest has the largest number.
        limits: temperature, `top_p` and `top_k`, all of them numbers.
        is_limited: `top_p` or `top_k` leaves tokens out.
    """

    prompt: list[int]
    params: SamplingParams
    limit: int
    decode: Callable[[Sequence[int]], str]
    hold: Callable[[int], None]
    name: str | None = None
    tell: Callable[[ScoredToken], None] | None = None
    likeliest: int = 0
    shown: Shown = NO_IMAGES
    special: frozenset[int] = frozenset()
    done: Future[FinishReason] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    sequence: CachedSequence | None = None
    number: int = field(default_factory=_numbers.__next__)

    def __post_init__(self) -> None:
        seed = self.params.seed
        self._key = str(secrets.randbits(64) if seed is None else seed).encode()
        self._ended = _Ended()
        self.done.add_done_callback(self._ended)
        params = self.params
        self._free_after = params.min_new_tokens if params.stop_token_ids else 0
        self.limits = params.temperature, params.top_p, params.top_k if params.top_k != -1 else NO_LIMIT
        self.is_limited = params.top_p < 1 or params.top_k != -1

    @property
    def cached(self) -> CachedSequence:
        """Where the keys and values of a running request are."""
        assert self.sequence is not None, "the request is not running"
        return self.sequence

    @property
    def ended(self) -> bool:
        """Whether it is finished, failed or cancelled."""
        return self._ended.so

    @property
    def needs_logits(self) -> bool:
        """Whether the choice of the next token takes more than the device does by itself."""
        return bool(self.likeliest or self.special or len(self.tokens) < self._free_after)

    def draw(self, ahead: int = 0) -> float:
        """Return the random number in [0, 1) that chooses the next token, or one so many tokens `ahead` of it.

        It depends only on the seed and on the token's position in the sequence, so a response that was interrupted goes
        on as it would have. It has 48 bits, so that its product with a sum of probabilities stays below that sum.
        """
        position = len(self.prompt) + len(self.tokens) + ahead
        return int.from_bytes(blake2b(b"%b:%d" % (self._key, position), digest_size=6).digest()) / 2**48

    def ends_after(self, tokens: int) -> bool:
        """Whether the response has its full length with so many tokens more."""
        return len(self.tokens) + tokens >= self.limit

    def banned(self) -> frozenset[int]:
        """Return the tokens that must not be chosen next: those of images, and the stop tokens, until the response has its least
        length."""
        return (
            self.special | self.params.stop_token_ids if len(self.tokens) < self.params.min_new_tokens else self.special
        )

    def keys(self) -> list[int]:
        """Return all its tokens, of which those of images tell images apart."""
        return self.shown.keys([*self.prompt, *self.tokens])

    def add(self, token: int, log_prob: float, version: int, likeliest: tuple[tuple[int, float], ...] = ()) -> None:
        """Append the next token, and finish the request if the token ends it."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.versions.append(version)
        if self.tell is not None:
            self.tell(ScoredToken(token, log_prob, likeliest))
        params = self.params
        if len(self.tokens) >= params.min_new_tokens and (
            token in params.stop_token_ids
            or (params.stop and completes_stop_string(self.decode, self.tokens, params.stop))
        ):
            self.finish("stop")
        elif len(self.tokens) >= self.limit:
            self.finish("length")

    # `done` may be cancelled at any moment by whoever waits for it.

    def finish(self, reason: FinishReason) -> None:
        """End the response. Holds the engine before the waiting caller can know of it; that caller ends the hold."""
        self.hold(1)
        try:
            self.done.set_result(reason)
        except InvalidStateError:
            self.hold(-1)

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        with suppress(InvalidStateError):
            self.done.set_exception(error)
