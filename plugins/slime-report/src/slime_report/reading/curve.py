"""`Curve`: the values of a metric over a run, in bounded memory, however long the run is. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slime_report.report import Series

MOST = 1000
"""Buckets that a curve is kept in at most, an even number; at least half as many, once there are more points than that."""


@dataclass(slots=True)
class _Bucket:
    """Neighbouring points: the step of the first and of the last, and what their values are together."""

    first: int
    last: int
    count: int = 0  # of finite values
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    points: int = 0

    def add(self, step: int, value: float | None) -> None:
        """Add a point behind the last."""
        self.last = step
        self.points += 1
        if value is not None:
            self.count += 1
            self.total += value
            self.low = value if value < self.low else self.low
            self.high = value if value > self.high else self.high

    def merged(self, other: _Bucket) -> _Bucket:
        """This bucket with the next one."""
        count, total = self.count + other.count, self.total + other.total
        low, high = min(self.low, other.low), max(self.high, other.high)
        return _Bucket(self.first, other.last, count, total, low, high, self.points + other.points)

    @property
    def mean(self) -> float | None:
        """The mean of its values; None if none is finite."""
        return self.total / self.count if self.count else None


@dataclass(frozen=True)
class Extreme:
    """A value and the step where it was."""

    value: float
    step: int


class Curve:
    """The values of one metric, in ascending order of their steps.

    Attributes:
        points: how many there are, NaN and infinities included.
        not_finite: the step of the first value that was NaN or infinite; None if there is none.
        first, last: finite values; None if there is none.
        lowest, highest: the same, with their steps.
        total: the sum of all finite values.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._buckets: list[_Bucket] = []
        self._width = 1
        self.points = 0
        self.not_finite: int | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.lowest: Extreme | None = None
        self.highest: Extreme | None = None
        self.total = 0.0

    def add(self, step: int, value: float | None) -> None:
        """Add a value, None where it was NaN or infinite. One whose step is not behind the last takes the place of all from there on:
        later lines win."""
        buckets = self._buckets
        if buckets and step <= buckets[-1].last:
            self.cut(step)
        if value is not None and not math.isfinite(value):
            value = None
        self.points += 1
        if value is None:
            self.not_finite = step if self.not_finite is None else self.not_finite
        else:
            self._note(value, step)
        if not buckets or buckets[-1].points >= self._width:
            if len(buckets) == MOST:
                buckets[:] = [one.merged(other) for one, other in zip(buckets[::2], buckets[1::2], strict=True)]
                self._width *= 2
            buckets.append(_Bucket(step, step))
        buckets[-1].add(step, value)

    def _note(self, value: float, step: int) -> None:
        """Remember a finite value as the last, and as what else it is."""
        if self.first is None:
            self.first = value
        self.last = value
        self.total += value
        if self.lowest is None or value < self.lowest.value:
            self.lowest = Extreme(value, step)
        if self.highest is None or value > self.highest.value:
            self.highest = Extreme(value, step)

    def cut(self, step: int) -> None:
        """Forget all values from this step on; of long curves also their neighbours in the same bucket."""
        kept, width = [bucket for bucket in self._buckets if bucket.last < step], self._width
        self._forget()
        self._buckets, self._width = kept, width
        for bucket in kept:
            if bucket.count < bucket.points and self.not_finite is None:
                self.not_finite = bucket.first
            if (mean := bucket.mean) is not None:
                self._note(bucket.low, bucket.last)
                self._note(bucket.high, bucket.last)
                self.first = mean if bucket is kept[0] else self.first
                self.last = mean
        self.points = sum(bucket.points for bucket in kept)
        self.total = sum(bucket.total for bucket in kept)

    @property
    def steps(self) -> list[int]:
        """The steps of the points that are left after thinning."""
        return [bucket.last for bucket in self._buckets]

    @property
    def means(self) -> list[float | None]:
        """Their values."""
        return [bucket.mean for bucket in self._buckets]

    def recent(self, share: float = 0.1, at_least: int = 5) -> float | None:
        """The mean of the last `share` of the points, of `at_least` so many; None if there is no value."""
        return _mean(self._buckets[::-1], max(at_least, int(self.points * share)))

    def early(self, share: float = 0.1, at_least: int = 5) -> float | None:
        """The mean of the first points, as `recent`; but of no more than the first half of them."""
        count = max(1, min(max(at_least, int(self.points * share)), self.points // 2))
        return _mean(self._buckets, count)

    def since(self, holds: Sequence[bool]) -> int | None:
        """The first step of the last stretch in which something holds.

        Args:
            holds: for each of `steps`.
        """
        found = None
        for bucket, held in zip(reversed(self._buckets), reversed(holds), strict=True):
            if not held:
                break
            found = bucket.first
        return found

    def series(self) -> Series:
        """The curve as a report has it; thinned values have their lowest and highest as band."""
        thinned = self._width > 1
        return Series(
            x=self.steps,
            y=[rounded(mean) for mean in self.means],
            low=[rounded(b.low) if b.count else None for b in self._buckets] if thinned else None,
            high=[rounded(b.high) if b.count else None for b in self._buckets] if thinned else None,
            points=self.points,
        )


def rounded(value: float | None) -> float | None:
    """A number of six digits; None where there is no finite one."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _mean(buckets: Sequence[_Bucket], points: int) -> float | None:
    count, total = 0, 0.0
    for bucket in buckets:
        count, total, points = count + bucket.count, total + bucket.total, points - bucket.points
        if points <= 0:
            break
    return total / count if count else None
