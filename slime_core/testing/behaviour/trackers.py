"""Checks of trackers."""

from __future__ import annotations

from slime_core.contracts.tracker import Tracker
from slime_core.testing.subject import Check, Subject

METRICS = {"train/loss": 1.5, "train/lr": 1e-6, "perf/rollout_time": 0.25}


def logs_and_closes(subject: Subject[Tracker]) -> None:
    """takes metrics of evaluations and rollouts, and closes, with and without an error"""
    for error in (None, ValueError("the run failed")):
        tracker = _tracker(subject, f"run-{error is None}")
        tracker.log({"eval/loss": 1.6}, -1)
        for step in range(3):
            tracker.log(dict(METRICS), step)
        tracker.close(error)


def flushes(subject: Subject[Tracker]) -> None:
    """has written what it writes to the run directory when `close` returns"""
    tracker = _tracker(subject, "flushed")
    for step in range(3):
        tracker.log(dict(METRICS), step)
    tracker.close(None)
    files = {path: path.stat().st_size for path in (subject.folder / "flushed").rglob("*") if path.is_file()}
    subject.expect(
        not files or any(files.values()),
        f"after close its files {sorted(path.name for path in files)} are empty; flush and close them in close().",
    )


def goes_on_in_the_same_directory(subject: Subject[Tracker]) -> None:
    """goes on in the run directory of a run that is resumed"""
    for resume_after in (None, 0):
        tracker = _tracker(subject, "resumed", resume_after)
        tracker.log(dict(METRICS), 0 if resume_after is None else 1)
        tracker.close(None)


def leaves_metrics_alone(subject: Subject[Tracker]) -> None:
    """does not change the metrics"""
    tracker, metrics = _tracker(subject, "alone"), dict(METRICS)
    with subject.unchanged("the metrics", lambda: dict(metrics)):
        tracker.log(metrics, 0)
        tracker.close(None)


def _tracker(subject: Subject[Tracker], name: str, resume_after: int | None = None) -> Tracker:
    """Return a new tracker of a run whose directory has this name."""
    run_dir = subject.folder / name
    run_dir.mkdir(exist_ok=True)
    config = {
        "arguments": subject.args.model_dump(mode="json"),
        "provenance": dict.fromkeys(type(subject.args).model_fields, "default"),
        "components": {"tracker": subject.name},
        "plugins": subject.plugins.fingerprint(),
        "resume_after": resume_after,
        "branches": False,
    }
    return subject.call(subject.args, run_dir, config)


TRACKER: list[Check] = [logs_and_closes, flushes, goes_on_in_the_same_directory, leaves_metrics_alone]
