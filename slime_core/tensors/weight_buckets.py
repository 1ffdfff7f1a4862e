"""Weights in buckets of limited size, as they travel from a trainer to an engine (`--update-weight-buffer-size`). For the core and for
engines that send weights themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_buckets(weights: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield the weights, (name, tensor) pairs, in buckets of at most `size` bytes, in order; a larger tensor has a bucket of its
    own. Of `weights` one more than a bucket is read at a time."""
    bucket: list[tuple[str, Tensor]] = []
    filled = 0
    for name, tensor in weights:
        if bucket and filled + tensor.nbytes > size:
            yield bucket
            bucket, filled = [], 0
        bucket.append((name, tensor))
        filled += tensor.nbytes
    if bucket:
        yield bucket
