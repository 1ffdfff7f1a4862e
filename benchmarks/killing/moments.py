"""What a run was doing, as its traces on disk show, and random moments in it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.killing.process import Process

PHASES = ("loading", "rollout or training", "evaluation", "checkpoint", "export")


@dataclass(frozen=True)
class Unbroken:
    """The run that is never killed.

    Attributes:
        folder: what it left.
        loading, gap: seconds to its first line of metrics, and from one line to the next, the median.
        evaluated: rollouts after which it evaluated.
        last: the rollout that it ended with.
        lines: of metrics.
    """

    folder: Path
    loading: float
    gap: float
    haste: list[float] = field(default_factory=lambda: [1.0], kw_only=True)  # less when runs end before they are killed
    evaluated: frozenset[int]
    last: int
    lines: int


@dataclass(frozen=True)
class Traces:
    """What a run has left on disk so far.

    Attributes:
        lines: of metrics, whole ones.
        last: rollout of the last one; -1 before any.
        evaluated: whether that is of an evaluation.
        unfinished: the checkpoint that was being written, by a number that no other has.
        newest: rollout of the newest checkpoint; -1 without one.
    """

    lines: int
    last: int
    evaluated: bool
    unfinished: int | None
    newest: int

    @staticmethod
    def of(folder: Path) -> Traces:
        lines = []
        with suppress(OSError):
            lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        line = json.loads(lines[-1]) if lines else {"rollout_id": -1}
        unfinished = None
        for path in folder.glob(".saving_*"):
            with suppress(OSError):
                unfinished = path.stat().st_ino
        newest = max((int(path.name[5:]) for path in folder.glob("iter_*")), default=-1)
        return Traces(len(lines), line["rollout_id"], is_evaluation(line), unfinished, newest)

    def phase(self, before: Traces, unbroken: Unbroken) -> str:
        """What a run was doing that was killed with these traces, and started with those before."""
        if self.unfinished is not None and self.unfinished != before.unfinished:
            return "checkpoint"
        if self.newest == unbroken.last:
            return "export"
        if self.lines == before.lines or self.lines == 0:
            return "loading"
        return "evaluation" if self.last in unbroken.evaluated and not self.evaluated else "rollout or training"


def aim(rng: random.Random, before: Traces, process: Process, unbroken: Unbroken, folder: Path) -> Callable[[], bool]:
    """A random moment: in a random phase, and a random time after that began. Returns whether it has come."""
    phase = rng.choice(PHASES)
    further = rng.randint(1, max(1, unbroken.lines - before.lines - 1))

    def has_begun() -> bool:
        if phase == "loading":
            return True
        now = Traces.of(folder)
        return {
            "rollout or training": now.lines != before.lines
            and now.lines >= min(before.lines + further, unbroken.lines - 1),
            "evaluation": now.lines != before.lines and now.last in unbroken.evaluated and not now.evaluated,
            "checkpoint": now.unfinished is not None
            and now.unfinished != before.unfinished
            and now.last >= before.newest,
            "export": now.newest == unbroken.last,
        }[phase]

    longest = {"loading": unbroken.loading, "checkpoint": min(0.05, unbroken.gap)}.get(phase, unbroken.gap)
    delay, begun = rng.uniform(0, longest * unbroken.haste[0]), []

    def has_come() -> bool:
        if not begun and has_begun():
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] >= delay

    return has_come


def is_evaluation(line: dict[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in line)
