"""Weights in buckets of limited size, as they travel from a trainer to an engine (`--update-weight-buffer-size`). For the core and for
engines that send weights themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_buckets(weights: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield the weights, (name, tensor) pairs, in buckets of at most `size` bytes, in order; a larger tensor has a bucket of its
    own. Scales in low precision, NAME_… behind NAME, stay with their weight. Of `weights` one more than a bucket is read at a
    time."""
    bucket: list[tuple[str, Tensor]] = []
    filled, weight = 0, ""
    for name, tensor in weights:
        of_last = bool(weight) and name.startswith(f"{weight}_")
        if bucket and not of_last and filled + tensor.nbytes > size:
            yield bucket
            bucket, filled = [], 0
        bucket.append((name, tensor))
        filled += tensor.nbytes
        weight = weight if of_last else name
    if bucket:
        yield bucket
