"""`Metrics`: what a run has logged, read from its metrics.jsonl, again and again while it grows."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from slime_report.reading.curve import Curve

TIME = {
    "training": "time/training",
    "log-probs before training": "time/log_probs",
    "waiting for samples": "time/waiting",
    "weights to the engine": "time/weights",
}
"""Phases of a rollout, and the curves of their seconds, which are made here."""
_SKIPPED = ("perf/hooks/",)


class Metrics:
    """The curves of a run by the names of their metrics. A step is a number of rollouts: 0 before training, n after the n-th.

    Args:
        path: metrics.jsonl; it need not be there yet.

    Attributes:
        curves: what was logged, without the timings of single hooks, and the seconds of each phase.
        trained: rollouts that have been trained.
        first_time, last_time: when the first and the last line were written, in seconds since 1970; None without lines.
        broken: lines that cannot be read, but for the last one, which may be half-written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: dict[str, bool] = {}
        self._forget()

    def _forget(self) -> None:
        self.curves: defaultdict[str, Curve] = defaultdict(Curve)
        self.trained = 0
        self.first_time: float | None = None
        self.last_time: float | None = None
        self.broken = 0
        self._read, self._file, self._rest = 0, -1, b""

    def update(self) -> None:
        """Read what has been written since the last time. A file that was replaced or has become shorter is read anew."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            status = self._path.stat()
            if status.st_ino != self._file or status.st_size < self._read:
                self._forget()
                self._file = status.st_ino
            file.seek(self._read)
            for line in file:
                self._read += len(line)
                whole = self._rest + line
                if not whole.endswith(b"\n"):
                    self._rest = whole  # the run is writing it, or was killed
                    break
                self._rest = b""
                self._take(whole)

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            step = int(found["rollout_id"]) + 1
        except (ValueError, KeyError, TypeError, RecursionError):
            self.broken += 1
            return
        time = found.get("time")
        if isinstance(time, (int, float)):
            self.first_time = time if self.first_time is None else self.first_time
            self.last_time = time
        if "perf/rollout_time" in found:
            if step <= self.trained:  # rolled back: an earlier attempt came further
                for curve in self.curves.values():
                    curve.cut(step)
            self.trained = step
            self._take_times(step, found)
        elif step < self.trained:  # somebody has evaluated an earlier checkpoint since
            return
        for name, value in found.items():
            if name not in self._told:
                self._told[name] = name not in ("rollout_id", "time") and not name.startswith(_SKIPPED)
            if self._told[name] and (
                value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
            ):
                self.curves[name].add(step, value)

    def _take_times(self, step: int, found: dict[str, Any]) -> None:
        """Cut the time of a rollout into phases."""

        def seconds(name: str) -> float:
            value = found.get(f"perf/{name}")
            return float(value) if isinstance(value, (int, float)) else 0.0

        weights, before = seconds("update_weights_time"), seconds("signals_time")
        phases = {
            "time/training": seconds("train_time") - before,
            "time/log_probs": before,
            "time/waiting": seconds("data_wait_time") - weights,
            "time/weights": weights,
        }
        for name, value in phases.items():
            self.curves[name].add(step, max(0.0, value))
