"""Whether a model decodes with fixed shapes as it does otherwise, found by computing both. Called by the scheduler when it has a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

import torch

from slime_engine_local.cache import CachedSequence, KVCache
from slime_engine_local.errors import EngineError
from slime_engine_local.forward_pass import Chunk, ForwardPass
from slime_engine_local.fused_proof import agree
from slime_engine_local.pages import Kernel, Pages, attention_over_pages
from slime_engine_local.static_decoding import StaticDecoding
from slime_engine_local.static_sampling import Choose, choose_on_device
from slime_engine_local.triton_operations import choose_by_triton, fits, triton_over_pages

if TYPE_CHECKING:
    from torch import Tensor

    from slime_engine_local.arguments import Decoding
    from slime_engine_local.model import LanguageModel

_log = logging.getLogger(__name__)
BEYOND = 20
"""How many tokens behind the end of the second page the compared token is."""
OF_ALL_LAYERS = 0.05
"""How far the logits of a model in half precision may be off, as a share of their spread, where all of its layers round."""
DRAWS = tuple(n * 0.6180339887 % 1 for n in range(16))
"""Random numbers for which chosen tokens are compared."""


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
        self._proved: tuple[ReferenceType[LanguageModel], tuple[Kernel, Choose] | None] | None = None

    def static(self, model: LanguageModel) -> StaticDecoding | None:
        """Make what decodes with fixed shapes, or None where requests are decoded in rows.

        Raises:
            EngineError: `--local-decoding pages` was given, and the model computes other logits so.
        """
        if self._wanted == "rows" or (self._wanted == "auto" and model.device.type != "cuda"):
            return None
        if self._proved is None or self._proved[0]() is not model:
            self._proved = ref(model), self._way(model)
        if (way := self._proved[1]) is None:
            return None
        pages = Pages(self._tokens, self._requests, self._longest, model.device)
        return StaticDecoding(model, pages, self._requests, *way)

    def _way(self, model: LanguageModel) -> tuple[Kernel, Choose] | None:
        problem = "it reads images, whose positions need rows"
        kernels: list[Kernel] = [] if model.reads_images else [attention_over_pages]
        by_triton = fits(model.device, model.dtype)
        if kernels and by_triton:
            kernels.insert(0, triton_over_pages)
        for kernel in kernels:
            problem = "its logits are others"
            try:
                if compare(model, self._longest, kernel):
                    return kernel, _choice(model) if by_triton else choose_on_device
            except Exception as error:  # a compiler raises what it likes
                problem = str(error)
            if kernel is triton_over_pages:
                _log.warning(
                    "Attention over pages is computed by plain operations, not by a Triton kernel (%s).", problem
                )
        if self._wanted == "pages":
            raise EngineError(f"--local-decoding pages does not fit this model: {problem}. Leave the option out.")
        _log.warning("Requests are decoded in rows: with fixed shapes the model does not compute (%s).", problem)
        return None


def compare(model: LanguageModel, longest: int, kernel: Kernel) -> bool:
    """Whether the logits behind the last token of a sequence that reaches into its third page are those of a pass over rows, and
    whether a kernel computes in each layer what plain operations do in float32. (In half precision the roundings of some dozens of
    layers would hide a kernel's faults in the logits, or look like some.)"""
    count = min(longest - 1, 2 * Pages(1, 1, 1, model.device).page + BEYOND)
    pages = Pages(count + 1, 1, count + 1, model.device)  # no more: memory may be short, and all of them are read
    *before, last = (n * 7919 % model.vocabulary for n in range(1, count + 1))
    cache = KVCache()
    sequence = CachedSequence(cache.add(count))
    if before:
        model.next_logits([], ForwardPass(cache, [], [Chunk(sequence, before)], model.device))
        sequence.row.length += len(before)
    expected = model.next_logits([last], ForwardPass(cache, [sequence], [], model.device))
    alike: list[bool] = []

    def compared(
        query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, scale: float, window: int | None
    ) -> Tensor:
        plain = attention_over_pages(query, keys, values, table, lengths, scale, window)
        if kernel is not attention_over_pages:
            wide = torch.promote_types(query.dtype, torch.float32)
            exact = attention_over_pages(query.to(wide), keys.to(wide), values.to(wide), table, lengths, scale, window)
            found = kernel(query, keys, values, table, lengths, scale, window)
            alike.append(agree(found, exact.to(query.dtype)))
        return plain

    decoding = StaticDecoding(model, pages, 1, compared)
    found = decoding.probe(pages.adopt([sequence], cache)[0], last)
    return agree(found, expected, OF_ALL_LAYERS) and bool(torch.isfinite(found).all()) and all(alike)


def _choice(model: LanguageModel) -> Choose:
    """The kernel that chooses tokens, if it finds those that plain operations find, or else these operations."""
    try:
        count, device = len(DRAWS), model.device
        draws = torch.tensor(DRAWS, dtype=torch.float64, device=device)
        temperatures = torch.tensor([n % 3 / 2 for n in range(count)], dtype=torch.float64, device=device)
        random = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(count, model.vocabulary, generator=random).to(device, model.dtype)
        given = logits, temperatures, draws, torch.ones_like(draws), torch.full_like(draws, 2.0**31), False
        difference = (choose_by_triton(*given) - choose_on_device(*given)).abs()
        # A draw that hits the border of two tokens may be on either side of it, and there may be two likeliest ones.
        if bool((difference < 1e-3).all(1).double().mean() >= 0.75):
            return choose_by_triton
        problem = "it finds other tokens"
    except Exception as error:  # a compiler raises what it likes
        problem = str(error)
    _log.warning("Tokens are chosen by plain operations, not by a Triton kernel (%s).", problem)
    return choose_on_device
