"""What a decoder layer computes between its products, attention over pages, and the choice of tokens, in a Triton kernel each.

A decoding step is a few hundred products, each of which takes some microseconds. In plain operations an RMS norm takes as long as a
product. `slime_engine_local.decoder`, `pages` and `static_sampling` use these kernels where `fits` says so and where what they compute
is found to be what plain operations do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.fused.gated import gated, is_silu
from slime_core.tensors.fused.norm import add_rms_norm, rms_norm
from slime_engine_local.layer_operations import HeadShape, Places, PlainOperations

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK, BLOCK_IN_FULL = 32, 16
"""Tokens that attention reads at a time in half precision, and in float32, whose products take ten times as long to compile; a page has
a multiple of them."""
PROGRAMS = 512
"""Attention splits the tokens of a sequence until it has about so many programs: four for each processor of a large GPU."""
MOST_SPLITS = 32
SPAN, SPANS = 256, 16
"""Tokens in a span of the vocabulary (`slime_engine_local.sampling.SPAN`), and spans that a program sums."""


def fits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run."""
    return device.type == "cuda" and dtype in DTYPES and find_spec("triton") is not None


class TritonOperations:
    """`slime_engine_local.layer_operations.LayerOperations` with kernels, norms and gates by those of a train backend. What the layers add
    to is in float32, as in a trainer under autocast."""

    _plain = PlainOperations()

    def residual(self, embedded: Tensor) -> Tensor:
        """See `LayerOperations`."""
        return embedded.float()

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """See `LayerOperations`."""
        weight, eps = norm.weight, norm.variance_epsilon
        if added is None:
            return x, rms_norm(x, weight, eps, weight.dtype)
        return add_rms_norm(x, added, weight, eps, weight.dtype)

    def encode(
        self, projected: Tensor, heads: HeadShape, cosine: Tensor, sine: Tensor, places: Places | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerOperations`."""
        rows, size = len(projected), heads.size
        query = projected.new_empty(rows, heads.queries, size)
        value = projected.view(rows, -1, size)[:, heads.queries + heads.keys :]
        key = projected.new_empty(rows, heads.keys, size) if places is None else places.keys
        norms = heads.norms or (None, None)
        weights = [projected if norm is None else norm.weight for norm in norms]
        epsilons = {norm.variance_epsilon for norm in heads.norms} or {0.0}
        if len(epsilons) > 1:
            raise ValueError("the norms of queries and keys are not alike")
        together = 8
        all_heads = heads.queries + heads.keys * (1 if places is None else 2)
        kernels_of_triton().encode[(rows, -(-all_heads // together))](
            *(projected, cosine, sine, *weights),
            projected if places is None else places.at,
            query,
            key,
            value if places is None else places.values,
            epsilons.pop(),
            QUERIES=heads.queries,
            KEYS=heads.keys,
            SIZE=size,
            NORMS=bool(heads.norms),
            PAGED=places is not None,
            HEADS=together,
            HALF=_power_of_two(size // 2),
            num_warps=2,
        )
        return query, key, value

    def gated(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """See `LayerOperations`."""
        if not is_silu(activation):
            return self._plain.gated(gate_up, activation)
        return gated(gate_up)


def triton_over_pages(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    *,
    splits: int | None = None,
    warps: int = 4,
    stages: int | None = None,
    block: int | None = None,
) -> Tensor:
    """Attention of one query of each of B sequences to their pages, (B, heads, size), as `pages.attention_over_pages` computes it. It
    reads no more than the tokens that there are.

    Args:
        splits: parts of a sequence that are computed at the same time; None: as many as the device has room for.
        warps, stages, block: how the kernel is compiled.
    """
    kernels = kernels_of_triton()
    (rows, heads, size), (page, key_heads) = query.shape, keys.shape[1:3]
    if splits is None:
        splits = min(MOST_SPLITS, _power_of_two(-(-PROGRAMS // (rows * key_heads)), down=True))
    query, out = query.contiguous(), torch.empty_like(query, memory_format=torch.contiguous_format)
    parts, sums = (
        query.new_empty(rows, heads, splits, n, dtype=torch.float32) if splits > 1 else out for n in (size, 2)
    )
    columns = max(16, _power_of_two(size))
    kernels.attend[(rows, key_heads, splits)](
        *(query, keys, values, table, lengths, out, parts, sums, scale, table.shape[1], window or 0),
        WINDOWED=window is not None,
        KEYS=key_heads,
        GROUP=heads // key_heads,
        SIZE=size,
        PAGE=page,
        SPLITS=splits,
        ROWS=max(16, _power_of_two(heads // key_heads)),
        COLUMNS=columns,
        BLOCK=min(page, block or (BLOCK if query.element_size() == 2 else BLOCK_IN_FULL)),
        num_warps=warps,
        num_stages=stages or (4 if columns <= 128 else 3),  # wide heads would take more memory than some GPUs have
    )
    if splits > 1:
        kernels.put_together[(rows * heads,)](parts, sums, out, SIZE=size, SPLITS=splits, COLUMNS=columns, num_warps=2)
    return out


def choose_by_triton(logits: Tensor, temperatures: Tensor, draws: Tensor, *_: object) -> Tensor:
    """The next token of B requests as `static_sampling.choose_on_device` chooses it where all tokens may be, from logits that are read
    once.

    Args:
        logits: (B, V).
        temperatures, draws: (B,) float64.
    """
    kernels, logits = kernels_of_triton(), logits.contiguous()
    rows, size = logits.shape
    spans, blocks = -(-size // SPAN), -(-size // (SPAN * SPANS))
    largest = logits.new_empty(rows, blocks, dtype=torch.float32)
    places = logits.new_empty(rows, blocks, dtype=torch.int64)
    sums = logits.new_empty(rows, spans, dtype=torch.float32)
    out = logits.new_empty(rows, 3, dtype=torch.float64)
    temperatures, draws = temperatures.contiguous(), draws.contiguous()
    kernels.sum_spans[(rows, blocks)](
        *(logits, temperatures, largest, places, sums, size, spans), SPAN=SPAN, SPANS=SPANS, num_warps=8
    )
    kernels.pick[(rows,)](
        *(logits, temperatures, draws, largest, places, sums, out, size, spans, blocks),
        SPAN=SPAN,
        SPANS=SPANS,
        ALL_SPANS=_power_of_two(spans),
        BLOCKS=_power_of_two(blocks),
        num_warps=4,
    )
    return out


@cache
def kernels_of_triton() -> Any:
    """The module with the kernels, imported when one is used."""
    from slime_engine_local import triton_kernels

    return triton_kernels


def _power_of_two(number: int, down: bool = False) -> int:
    """The least power of two that is no smaller, or the largest that is no larger."""
    return 1 << (max(1, number).bit_length() - 1) if down else 1 << max(0, number - 1).bit_length()
