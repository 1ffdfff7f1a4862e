"""Whether a model decodes with fixed shapes as it does otherwise, found by computing both. Called by the scheduler when it has a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

import torch

from slime_engine_local.cache import CachedSequence, KVCache
from slime_engine_local.errors import EngineError
from slime_engine_local.forward_pass import Chunk, ForwardPass
from slime_engine_local.model import agree
from slime_engine_local.pages import Pages
from slime_engine_local.static_decoding import StaticDecoding, flash_fits

if TYPE_CHECKING:
    from slime_engine_local.arguments import Decoding
    from slime_engine_local.model import LanguageModel

_log = logging.getLogger(__name__)
BEYOND = 20
"""How many tokens behind the end of the first page the compared token is."""


class DecodingChoice:
    """How requests are decoded: in rows, or in pages with fixed shapes.

    Args:
        wanted: `--local-decoding`.
        requests: how many are decoded together at most.
        tokens: how many tokens' keys and values are kept at most.
        context: where the model's context ends, if that is known.
    """

    def __init__(self, wanted: Decoding, requests: int, tokens: int, context: int | None) -> None:
        self._wanted, self._requests, self._tokens = wanted, requests, tokens
        self._longest = min(tokens, context or tokens) + 1
        self._proved: tuple[ReferenceType[LanguageModel], bool | None] | None = (
            None  # by flash attention or not; None: not at all
        )

    def static(self, model: LanguageModel) -> StaticDecoding | None:
        """Make what decodes with fixed shapes, or None where requests are decoded in rows.

        Raises:
            EngineError: `--local-decoding pages` was given, and the model computes other logits so.
        """
        if self._wanted == "rows" or (self._wanted == "auto" and model.device.type != "cuda"):
            return None
        if self._proved is None or self._proved[0]() is not model:
            self._proved = ref(model), self._way(model)
        if (flash := self._proved[1]) is None:
            return None
        pages = Pages(self._tokens, self._requests, self._longest, model.device)
        return StaticDecoding(model, pages, self._requests, flash)

    def _way(self, model: LanguageModel) -> bool | None:
        problem = "it reads images, whose positions need rows"
        for flash in () if model.reads_images else (True, False) if flash_fits(model) else (False,):
            problem = "its logits are others"
            try:
                if compare(model, self._longest, flash):
                    return flash
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                problem = str(error)
        if self._wanted == "pages":
            raise EngineError(f"--local-decoding pages does not fit this model: {problem}. Leave the option out.")
        _log.warning("Requests are decoded in rows: with fixed shapes the model does not compute (%s).", problem)
        return None


def compare(model: LanguageModel, longest: int, flash: bool) -> bool:
    """Whether the logits behind the last token of a sequence that reaches into its second page are those of a pass over rows."""
    pages = Pages(longest, 1, longest, model.device)
    count = min(longest - 1, pages.page + BEYOND)
    *before, last = (n * 7919 % model.vocabulary for n in range(1, count + 1))
    cache = KVCache()
    sequence = CachedSequence(cache.add(count))
    if before:
        model.next_logits([], ForwardPass(cache, [], [Chunk(sequence, before)], model.device))
        sequence.row.length += len(before)
    expected = model.next_logits([last], ForwardPass(cache, [sequence], [], model.device))
    decoding = StaticDecoding(model, pages, 1, flash)
    found = decoding.probe(pages.adopt(sequence, cache), last)
    return agree(found, expected) and bool(torch.isfinite(found).all())
