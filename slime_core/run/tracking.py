"""Where the numbers of a run go: `metrics.jsonl` and the console always, further trackers when chosen.

One line of `metrics.jsonl` is one event: `{"rollout_id": 3, "time": …, "train/loss": …}`. Everything that depends on the
clock or the machine has a name that starts with `perf/` (or is `time`); all other numbers of a resumed run are equal to
those of the unbroken run, bit for bit.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.contracts.rollout_outputs import metric_numbers
from slime_core.contracts.tracker import Tracker
from slime_core.errors import DataError, PluginError
from slime_core.output import writing
from slime_core.plugins import Selected
from slime_core.run.console import Console
from slime_core.whole_file import write_whole

logger = logging.getLogger(__name__)

TRAINED = "perf/rollout_time"
"""The metric that every line of a rollout has, and none of an evaluation."""


class JsonlTracker:
    """Appends to `metrics.jsonl`. A resumed run first drops what came after its checkpoint.

    Args:
        path: the file.
        resume_after: keep only lines up to this rollout id; None keeps nothing.
        again: the evaluation after this rollout is made once more, so what is there of it is dropped too.

    Attributes:
        told_again: the lines that are left from this rollout on, of which other trackers must be told once more: they cannot drop the
            evaluation alone.
    """

    def __init__(self, path: Path, resume_after: int | None, again: int | None = None) -> None:
        kept: list[bytes] = []
        if resume_after is not None and path.exists():
            lines = path.read_bytes().splitlines()
            kept = [line + b"\n" for line in lines if _keep(line, resume_after, again)]
        self.told_again = [
            row for line in kept if again is not None and (row := json.loads(line))["rollout_id"] >= again
        ]
        with writing("The metrics", path):
            write_whole(path, b"".join(kept))
            self._file = path.open("ab", buffering=0)  # so that nothing is left to be written when it is closed
        self._path = path

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line, which the operating system has when this returns. NaN and infinities, which JSON does not have, become
        null.

        Raises:
            OutputError: it could not be written.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        rest = memoryview((json.dumps({"rollout_id": step, "time": round(time.time(), 3), **finite}) + "\n").encode())
        with writing("The metrics", self._path):
            while rest:  # a full disk takes a part, and refuses the rest
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _keep(line: bytes, last_rollout: int, again: int | None) -> bool:
    rollout_id = rollout_of(line)
    if rollout_id is None or rollout_id > last_rollout:
        return False
    return rollout_id != again or TRAINED in json.loads(line)


def rollout_of(line: bytes) -> int | None:
    """The rollout that a line of `metrics.jsonl` is about; None for one that a kill cut short."""
    try:
        return int(json.loads(line)["rollout_id"])
    except (ValueError, KeyError, TypeError):
        return None


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The names under `prefix/`; what depends on the clock stays under `perf/`."""
    return {name if name.startswith("perf/") else f"{prefix}/{name}": value for name, value in metrics.items()}


def call_own_log(
    own_log: Selected[bool | None],
    prefix: str,
    rollout_id: int,
    args: RunArguments,
    data: Any,
    metrics: Mapping[str, float],
    *more: Any,
) -> tuple[bool, dict[str, float]]:
    """Call `contracts.rollout.rollout_log` or `eval_rollout_log`; return whether it has logged all itself, and what it leaves of the
    metrics. Those that it adds may have their full names, as in slime: `prefix/NAME`.

    Raises:
        PluginError: it leaves a metric that is no number.
    """
    left = dict(metrics)
    itself = bool(own_log(rollout_id, args, data, left, *more))
    try:
        numbers = metric_numbers(left)
    except DataError as error:
        raise PluginError(f"The {own_log.label} left what cannot be logged: {error}.") from None
    return itself, {name if name in metrics else name.removeprefix(f"{prefix}/"): numbers[name] for name in numbers}


class Tracking:
    """All trackers of a run behind one `log`.

    Args:
        jsonl, console: the two that are always there.
        trackers: the chosen components, made by this class as `Tracker(args, run_dir, config)`.
        note: is told everything too, for the end of the run.
    """

    def __init__(
        self,
        jsonl: JsonlTracker,
        console: Console,
        trackers: Sequence[Selected[Tracker]],
        args: RunArguments,
        run_dir: Path,
        config: dict[str, Any],
        note: Callable[[Mapping[str, float], int], None] | None = None,
    ) -> None:
        self.console = console
        self._note = note
        self._jsonl = jsonl
        if jsonl.told_again:
            config = {**config, "resume_after": jsonl.told_again[0]["rollout_id"] - 1}
        self._trackers: list[Tracker] = []
        try:
            self._trackers.extend(selected(args, run_dir, config) for selected in trackers)
            for row in jsonl.told_again:
                own = {n: math.nan if v is None else v for n, v in row.items() if n not in ("rollout_id", "time")}
                for tracker in self._trackers:
                    tracker.log(dict(own), row["rollout_id"])
        except BaseException as error:
            self.close(error)
            raise

    def log(self, metrics: Mapping[str, float], rollout_id: int) -> None:
        """Hand the numbers to every tracker."""
        self._jsonl.log(metrics, rollout_id)
        if self._note is not None:
            self._note(metrics, rollout_id)
        for tracker in self._trackers:
            tracker.log(dict(metrics), rollout_id)

    def close(self, error: BaseException | None) -> None:
        """The run is over; `error` is what ended it. The chosen trackers are told, all of them also if one fails. After an error, that
        is the one to raise, so what goes wrong here is a warning."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(_close, tracker, error)


def _close(tracker: Any, error: BaseException | None) -> None:
    try:
        tracker.close(error)
    except Exception as failure:
        if error is None:
            raise
        logger.warning(
            "The tracker %s could not be closed: %s: %s", type(tracker).__name__, type(failure).__name__, failure
        )
