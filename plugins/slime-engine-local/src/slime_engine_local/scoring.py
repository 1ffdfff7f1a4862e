"""`Scoring`: the log-probs of given tokens. `LocalEngine.score` makes one and lets the scheduler's thread call it, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slime_core.contracts.engine import ScoredToken
from slime_engine_local.cache import CachedSequence, KVCache
from slime_engine_local.forward_pass import Chunk, ForwardPass
from slime_engine_local.sampling import likeliest_tokens, log_probs_of
from slime_engine_local.scheduler import Scheduler
from slime_engine_local.vision import NO_IMAGES, Shown

PIECE = 256
"""So many tokens are read at a time. Running requests go on in between, and their logits bound the memory."""


class Scoring:
    """Scores N tokens, with a cache of its own.

    Args:
        scheduler: whose model is asked.
        tokens: at least one.
        temperature: divides the logits.
        likeliest: how many tokens `ScoredToken.likeliest` lists.
        shown: the images of the tokens.

    Attributes:
        scored: what is known so far, in the end N - 1 entries.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokens: Sequence[int],
        temperature: float,
        likeliest: int,
        shown: Shown = NO_IMAGES,
    ) -> None:
        self.scored: list[ScoredToken] = []
        self._scheduler, self._tokens = scheduler, list(tokens)
        self._temperature, self._likeliest, self._shown = temperature, likeliest, shown
        self._begin()

    @property
    def is_done(self) -> bool:
        """Whether all tokens have been scored."""
        return len(self.scored) == len(self._tokens) - 1

    def advance(self) -> None:
        """Score the next piece; only to be called through `Scheduler.call`. Where the weights have changed since the last one, all
        begins again, so that the same weights score all tokens."""
        model = self._scheduler.model_in_use()
        if self._version != self._scheduler.version:
            self._begin()
        first = len(self.scored)
        self._shown.prepare(model)
        end = self._shown.whole(min(first + PIECE, len(self._tokens) - 1))
        piece = self._tokens[first:end]
        step = ForwardPass(self._cache, [], [Chunk(self._sequence, piece, self._shown.chunk(first, end))], model.device)
        logits = model.next_logits([], step, everywhere=True)
        self._sequence.row.length += len(piece)
        piece = piece[: len(self._tokens) - 1 - first]  # nothing follows the last token
        logits = logits[: len(piece)]
        following = self._tokens[first + 1 : first + 1 + len(piece)]
        temperatures = [self._temperature] * len(piece)
        chosen = torch.tensor(following, device=logits.device)[:, None]
        log_probs = log_probs_of(chosen, logits, temperatures)[:, 0].tolist()
        others = likeliest_tokens(logits, temperatures, [self._likeliest] * len(piece))
        self.scored += map(ScoredToken, following, log_probs, others)

    def _begin(self) -> None:
        self.scored.clear()
        self._version = self._scheduler.version
        self._cache = KVCache()
        self._sequence = CachedSequence(self._cache.add(len(self._tokens)))
