"""Decoding with fixed shapes: `--local-decoding pages`. The scheduler has running requests decoded here, after their prompts were
computed as everywhere.

A step is one pass over B requests, B from a short list of sizes, and the choice of their tokens. Everything that it reads and writes
lies on the device at the same place every time, so a GPU replays it as a CUDA graph. The host gives it one small tensor (which
requests, where they are, their random numbers) and reads one back, without waiting at either end: while it looks at the tokens of a
step the next one is computed already. What such a step computes for a request that has ended meanwhile, or that the weights have
changed for, is dropped: its keys and values are written again by the step that counts.

The random numbers are those of `Request.draw`, so a request's tokens are those of the other way to decode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from slime_core.tensors.transfer import numbers_on, sent
from slime_engine_local.pages import Kernel, PagedSequence, Pages, StaticPass, attention_over_pages
from slime_engine_local.request import NO_LIMIT
from slime_engine_local.static_sampling import Choose, choose_on_device

if TYPE_CHECKING:
    from slime_engine_local.model import LanguageModel
    from slime_engine_local.request import Request

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""How many requests a step is made for; one for more takes a multiple of the last one."""
KNOWN = -1.0
"""In the place of a token that only the device knows yet."""

_Key = tuple[int, int, bool | None]
_log = logging.getLogger(__name__)


Read = tuple["Request", float, float, float]
"""What a step found for a request: the token, its log-prob, and whether the logits are finite (1 or 0)."""


@dataclass(frozen=True)
class _Asked:
    """The requests of a step, where their tokens are, and how many were stored when it began: a list of each, since every step of
    many requests makes them anew."""

    requests: list[Request]
    sequences: list[PagedSequence]
    lengths: list[int]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> _Asked:
        sequences = [request.sequence for request in requests]
        assert all(isinstance(sequence, PagedSequence) for sequence in sequences), "a request's tokens are not in pages"
        paged = cast("list[PagedSequence]", sequences)
        return cls(list(requests), paged, [sequence.length for sequence in paged])

    def only(self, places: Sequence[int]) -> _Asked:
        """Those at these places."""
        requests, sequences = [self.requests[place] for place in places], [self.sequences[place] for place in places]
        return _Asked(requests, sequences, [self.lengths[place] for place in places])

    def then(self, others: _Asked) -> _Asked:
        """The next step of these, and a first one of others."""
        lengths = [length + 1 for length in self.lengths]
        return _Asked(self.requests + others.requests, self.sequences + others.sequences, lengths + others.lengths)


@dataclass(frozen=True)
class _Launched:
    """A step that may still be computed."""

    asked: _Asked
    results: Tensor
    arrived: Callable[[], None]


class StaticDecoding:
    """The steps for one model.

    Args:
        model: whose weights may change in place.
        pages: hold the keys and values of the requests.
        requests: how many are decoded together at most.
        kernel: computes attention.
        choose: chooses tokens where nothing is left out, `choose_on_device` or what finds the same.
    """

    def __init__(
        self, model: LanguageModel, pages: Pages, requests: int, kernel: Kernel, choose: Choose = choose_on_device
    ) -> None:
        self.pages = pages
        self._model, self._device = model, model.device
        self._kernel, self._choose = kernel, choose
        self._nothing = requests, 0, 0, 0, 0.0, 1.0, NO_LIMIT, 0.0  # what fills a batch up
        self._last = torch.zeros(requests + 1, dtype=torch.long, device=self._device)
        self._steps: dict[_Key, Callable[[Tensor], Tensor]] = {}
        self._pool: Any = None
        self._ahead: _Launched | None = None

    def decode(self, requests: Sequence[Request]) -> list[Read]:
        """The next token of every one of these requests, or of fewer: those whose token is computed already come first, and the
        others in the next call. The step behind this one is begun."""
        launched, self._ahead = self._ahead, None
        now = _Asked.of(requests)
        places = [] if launched is None else _still_there(launched.asked, now)
        if launched is None or not places:
            launched, places = self._launch(now, 0), list(range(len(requests)))
        every = len(places) == len(launched.asked.requests)
        going = launched.asked if every else launched.asked.only(places)
        # One that has its last token in this step has no next one; neither has one that was not in it, whose token is known.
        more = [place for place, request in enumerate(going.requests) if not request.ends_after(1)]
        others = _NONE
        if len(going.requests) < len(requests):
            known = set(going.requests)
            others = now.only([place for place, request in enumerate(requests) if request not in known])
        next_step = (going if len(more) == len(going.requests) else going.only(more)).then(others)
        if next_step.requests and self._room(next_step):
            self._ahead = self._launch(next_step, len(more))
        launched.arrived()
        numbers = launched.results.tolist()
        return [(request, *numbers[place]) for place, request in zip(places, going.requests, strict=True)]

    def logits(self, requests: Sequence[Request]) -> Tensor:
        """The logits (B, V) that choose the next token of each request, where the choice needs the host."""
        self.drop()
        return self._run(_Asked.of(requests), 0, None)[: len(requests)]

    def probe(self, sequence: PagedSequence, token: int) -> Tensor:
        """The logits (1, V) behind a token that follows those of a sequence, without a graph."""
        self.pages.grow(sequence, 1)
        given = numbers_on(
            self._device,
            [[sequence.slot, token, sequence.length, sequence.pages[-1], *self._nothing[4:]]],
            torch.float64,
        )
        return self._compute((1, self.pages.width, None), given)

    def drop(self) -> None:
        """Forget the step that was begun: the weights have changed, or requests have left."""
        self._ahead = None

    def _room(self, asked: _Asked) -> bool:
        free = self.pages.free  # a sequence takes one page at most
        if len(asked.requests) <= free:
            return True
        ends = zip(asked.sequences, asked.lengths, strict=True)
        return sum(self.pages.missing(s, n + 1 - s.length) for s, n in ends) <= free

    def _launch(self, asked: _Asked, unread: int) -> _Launched:
        """Begin a step. Of the first `unread` requests only the device knows the last token."""
        limited = any(request.is_limited for request in asked.requests)
        results = self._run(asked, unread, limited)
        if results.is_cuda:
            host = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
            host.copy_(results, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            event.record()
            return _Launched(asked, host, event.synchronize)
        return _Launched(asked, results, lambda: None)

    def _run(self, asked: _Asked, unread: int, limited: bool | None) -> Tensor:
        requests, lengths, page = asked.requests, asked.lengths, self.pages.page
        size, count = _size(len(requests)), len(requests)
        given = np.tile(np.array(self._nothing), (size, 1))
        numbers = given[:count]
        numbers[:, 0] = [sequence.slot for sequence in asked.sequences]
        numbers[:unread, 1] = KNOWN
        numbers[unread:, 1] = [request.tokens[-1] for request in requests[unread:]]
        numbers[:, 2] = lengths
        numbers[:, 3] = [
            self._page_of(sequence, length, length // page)
            for sequence, length in zip(asked.sequences, lengths, strict=True)
        ]
        numbers[:, 4:7] = [request.limits for request in requests]
        numbers[:unread, 7] = [request.draw(1) for request in requests[:unread]]
        numbers[unread:, 7] = [request.draw() for request in requests[unread:]]
        width = self.pages.width
        if self._kernel is attention_over_pages:  # which reads all of it
            longest = max(lengths) // page + 1
            width = min(width, 1 << (longest - 1).bit_length())
        key = size, width, limited
        on_device = sent(torch.from_numpy(given), self._device)
        if key not in self._steps:
            self._steps[key] = self._step(key, on_device)
        return self._steps[key](on_device)

    def _page_of(self, sequence: PagedSequence, length: int, place: int) -> int:
        """The number of the page, at this place of a sequence's, that its next token goes to."""
        if place >= len(sequence.pages):
            self.pages.grow(sequence, length + 1 - sequence.length)
        return sequence.pages[place]

    def _compute(self, key: _Key, given: Tensor) -> Tensor:
        """One step: (B, 8) numbers to (B, 3), token, log-prob, and whether the logits are finite; or to logits."""
        _, width, limited = key
        slots, tokens, positions, page = given[:, :4].long().unbind(1)
        tokens = torch.where(tokens < 0, self._last.index_select(0, slots), tokens)
        step = StaticPass(self.pages, slots, positions, page, width, self._kernel)
        logits = self._model.static_logits(tokens, positions, step)
        if limited is None:
            return logits
        temperatures, top_p, top_k, draws = given[:, 4:].unbind(1)
        choose = choose_on_device if limited else self._choose
        chosen = choose(logits, temperatures, draws, top_p, top_k, limited)
        self._last.index_copy_(0, slots, chosen[:, 0].long())
        return chosen

    def _step(self, key: _Key, given: Tensor) -> Callable[[Tensor], Tensor]:
        """What computes steps of this kind: on a GPU a graph that is captured now, else the operations one by one."""

        def plain(given: Tensor) -> Tensor:
            return self._compute(key, given)

        if self._device.type != "cuda":
            return plain
        before = self._last.clone()
        try:
            return self._captured(key, given)
        except RuntimeError as error:
            _log.warning("A decoding step cannot be captured as a CUDA graph, and runs without one: %s", error)
            return plain
        finally:
            self._last.copy_(before)  # the step was computed more than once

    def _captured(self, key: _Key, given: Tensor) -> Callable[[Tensor], Tensor]:
        inputs = given.clone()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch does not annotate it
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # what is made at the first call, such as workspaces, must not be captured
                self._compute(key, inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._compute(key, inputs)
        self._pool = self._pool or graph.pool()

        def replay(given: Tensor) -> Tensor:
            inputs.copy_(given)
            graph.replay()
            return outputs

        return replay


def _size(count: int) -> int:
    return next((size for size in SIZES if size >= count), -(-count // SIZES[-1]) * SIZES[-1])


def _still_there(asked: _Asked, now: _Asked) -> list[int]:
    """The places in a step of those requests whose tokens are where they were when it began, and as many."""
    if asked == now:
        return list(range(len(asked.requests)))
    present = {id(sequence): length for sequence, length in zip(now.sequences, now.lengths, strict=True)}
    ends = enumerate(zip(asked.sequences, asked.lengths, strict=True))
    return [place for place, (sequence, length) in ends if present.get(id(sequence)) == length]


_NONE = _Asked([], [], [])
