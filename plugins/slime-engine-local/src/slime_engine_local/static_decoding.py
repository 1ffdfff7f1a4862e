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
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from slime_core.tensors.transfer import numbers_on, sent
from slime_engine_local.pages import Kernel, PagedSequence, Pages, StaticPass, attention_over_pages
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


class Read(NamedTuple):
    """What a step found for one request.

    Attributes:
        length: of the sequence when the token was computed.
    """

    request: Request
    sequence: PagedSequence
    length: int
    token: int
    log_prob: float
    finite: bool


@dataclass(frozen=True)
class _Launched:
    """A step that may still be computed."""

    asked: list[tuple[Request, PagedSequence, int]]
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
        self._model, self._last_slot, self._device = model, requests, model.device
        self._kernel, self._choose = kernel, choose
        self._last = torch.zeros(requests + 1, dtype=torch.long, device=self._device)
        self._steps: dict[_Key, Callable[[Tensor], Tensor]] = {}
        self._pool: Any = None
        self._ahead: _Launched | None = None

    def decode(self, requests: Sequence[Request]) -> list[Read]:
        """The next token of every one of these requests, or of fewer: those whose token is computed already come first, and the
        others in the next call. The step behind this one is begun."""
        launched, self._ahead = self._ahead, None
        running = set(requests)
        going = [
            (request, sequence, length)
            for request, sequence, length in (launched.asked if launched else ())
            if request in running and request.sequence is sequence and sequence.length == length
        ]
        if launched is None or not going:
            launched = self._launch([(request, _paged(request), _paged(request).length) for request in requests], 0)
            going = launched.asked
        # One that has its last token in this step has no next one; neither has one that was not in it, whose token is known.
        more = [(request, sequence, length + 1) for request, sequence, length in going if not request.ends_after(1)]
        known = {request for request, _, _ in going}
        others = [(request, _paged(request), _paged(request).length) for request in requests if request not in known]
        if (more or others) and self._room([*more, *others]):
            self._ahead = self._launch([*more, *others], len(more))
        launched.arrived()
        numbers = launched.results.tolist()
        kept = {id(request) for request, _, _ in going}
        return [
            Read(request, sequence, length, int(token), log_prob, bool(finite))
            for (request, sequence, length), (token, log_prob, finite) in zip(launched.asked, numbers, strict=False)
            if id(request) in kept
        ]

    def logits(self, requests: Sequence[Request]) -> Tensor:
        """The logits (B, V) that choose the next token of each request, where the choice needs the host."""
        self.drop()
        asked = [(request, _paged(request), _paged(request).length) for request in requests]
        return self._run(asked, 0, None)[: len(asked)]

    def probe(self, sequence: PagedSequence, token: int) -> Tensor:
        """The logits (1, V) behind a token that follows those of a sequence, without a graph."""
        self.pages.grow(sequence, 1)
        given = numbers_on(
            self._device,
            [[sequence.slot, token, sequence.length, sequence.pages[-1], 0.0, 0.0, 1.0, 2**31]],
            torch.float64,
        )
        return self._compute((1, self.pages.width, None), given)

    def drop(self) -> None:
        """Forget the step that was begun: the weights have changed, or requests have left."""
        self._ahead = None

    def _room(self, asked: Sequence[tuple[Request, PagedSequence, int]]) -> bool:
        free = self.pages.free  # a sequence takes one page at most
        return len(asked) <= free or sum(self.pages.missing(s, n + 1 - s.length) for _, s, n in asked) <= free

    def _launch(self, asked: list[tuple[Request, PagedSequence, int]], unread: int) -> _Launched:
        """Begin a step. Of the first `unread` requests only the device knows the last token."""
        limited = any(request.params.top_p < 1 or request.params.top_k != -1 for request, _, _ in asked)
        results = self._run(asked, unread, limited)
        if results.is_cuda:
            host = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
            host.copy_(results, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            event.record()
            return _Launched(asked, host, event.synchronize)
        return _Launched(asked, results, lambda: None)

    def _run(self, asked: list[tuple[Request, PagedSequence, int]], unread: int, limited: bool | None) -> Tensor:
        numbers = array("d")
        tokens_of_page = self.pages.page
        for number, (request, sequence, length) in enumerate(asked):
            ahead = int(number < unread)
            place = length // tokens_of_page
            if place >= len(sequence.pages):
                self.pages.grow(sequence, length + 1 - sequence.length)
            params = request.params
            top_k = params.top_k if params.top_k != -1 else 2**31
            token = KNOWN if ahead else request.tokens[-1]
            numbers.extend((sequence.slot, token, length, sequence.pages[place]))
            numbers.extend((params.temperature, request.draw(ahead), params.top_p, top_k))
        size = _size(len(asked))
        numbers.extend((self._last_slot, 0, 0, 0, 0.0, 0.0, 1.0, 2**31) * (size - len(asked)))
        width = self.pages.width
        if self._kernel is attention_over_pages:  # which reads all of it
            longest = max(-(-(length + 1) // self.pages.page) for _, _, length in asked)
            width = min(width, 1 << (longest - 1).bit_length())
        key = size, width, limited
        given = sent(torch.frombuffer(numbers, dtype=torch.float64).view(size, 8), self._device)
        if key not in self._steps:
            self._steps[key] = self._step(key, given)
        return self._steps[key](given)

    def _compute(self, key: _Key, given: Tensor) -> Tensor:
        """One step: (B, 8) numbers to (B, 3), token, log-prob, and whether the logits are finite; or to logits."""
        _, width, limited = key
        slots, tokens, positions, page = given[:, :4].long().unbind(1)
        tokens = torch.where(tokens < 0, self._last.index_select(0, slots), tokens)
        step = StaticPass(self.pages, slots, positions, page, width, self._kernel)
        logits = self._model.static_logits(tokens, positions, step)
        if limited is None:
            return logits
        temperatures, draws, top_p, top_k = given[:, 4:].unbind(1)
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


def _paged(request: Request) -> PagedSequence:
    sequence = request.sequence
    assert isinstance(sequence, PagedSequence), "the request's tokens are not in pages"
    return sequence
