"""`Facts`: what alarms look at, with the windows in which they look. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slime_report.reading.curve import Curve
from slime_report.reading.evaluations import Interval
from slime_report.reading.folder import Sign
from slime_report.report import SampleRow, State


@dataclass(frozen=True)
class Facts:
    """What is known of a run.

    Attributes:
        state: how it stands.
        error: what ended it: "type" and "text", or empty.
        done, total: rollouts that are trained, and that were asked for.
        silent: seconds since its last sign of life.
        sign: the last thing that happened.
        curves: its metrics.
        intervals: of its evaluations, by metric and step.
        statuses: {step: {status: samples}} of recorded rollouts.
        samples: in a rollout, as the options say.
        arguments: its options.
        rows: recorded samples.
        claim: who held the folder and was killed.
    """

    state: State
    error: Mapping[str, Any]
    done: int
    total: int | None
    silent: float
    sign: Sign | None
    curves: Mapping[str, Curve]
    intervals: Mapping[str, Mapping[int, Interval]] = field(default_factory=dict)
    statuses: dict[int, dict[str, int]] = field(default_factory=dict)
    samples: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[SampleRow] = ()
    claim: str = ""

    def curve(self, name: str, at_least: int = 1) -> Curve | None:
        """A metric that has at least so many points."""
        found = self.curves.get(name)
        return found if found is not None and found.points >= at_least else None

    @property
    def is_rl(self) -> bool:
        """Whether the run is trained by rewards."""
        reward = self.curve("rollout/raw_reward")
        moves = reward is not None and any(e is not None and e.value != 0 for e in (reward.lowest, reward.highest))
        return moves or self.curve("rollout/zero_std/share") is not None

    def rise(self, name: str) -> tuple[float, float] | None:
        """By how much a metric has risen from its first to its last tenth, and how sure that is, as a 95 % half-width; None where it has
        fewer than six points."""
        curve = self.curve(name, at_least=6)
        if curve is None:
            return None
        values = [mean for mean in curve.means if mean is not None]
        count = max(3, len(values) // 10)
        early, late = values[:count], values[-count:]
        if len(values) < 6:
            return None
        return _mean(late) - _mean(early), 1.96 * math.sqrt(_variance(early) / count + _variance(late) / count)

    def sample(self, wanted: Any) -> str | None:
        """The id of the last recorded sample of training for which `wanted(row)` holds."""
        return next((row.id for row in reversed(self.rows) if row.dataset is None and wanted(row)), None)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
