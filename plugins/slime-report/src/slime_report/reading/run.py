"""`RunReader`: everything that a report says of one run, read again while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slime_report.reading.alarms import alarms_of
from slime_report.reading.charts import charts_of
from slime_report.reading.compare import option_in_words, option_name
from slime_report.reading.curve import Curve, rounded
from slime_report.reading.evaluations import Interval, read_evaluations
from slime_report.reading.facts import Facts
from slime_report.reading.folder import RunFolder, iso, read_folder
from slime_report.reading.groups import RecordedGroups, read_groups
from slime_report.reading.metrics import Metrics
from slime_report.reading.samples import read_samples
from slime_report.reading.scores import losses_of, scores_of, time_of
from slime_report.reading.verdict import verdict
from slime_report.recording import FOLDER
from slime_report.report import Argument, Plugin, Provenance, Run, Samples, Series


class RunReader:
    """Reads one run directory.

    Args:
        path: of the run.

    Raises:
        ArgumentError: it is no run directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        read_folder(path)
        self._metrics = Metrics(path / "metrics.jsonl")

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The options of the run."""
        return read_folder(self._path).arguments

    def read(self, sample_bytes: int) -> Run:
        """Read what is there now.

        Args:
            sample_bytes: how much of the report its samples may take.
        """
        path, now = self._path, time.time()
        folder = read_folder(path)
        self._metrics.update()
        metrics, curves, arguments = self._metrics, self._metrics.curves, folder.arguments
        evaluations = read_evaluations(path / "eval", arguments.get("reward_key"))
        groups = read_groups(path / FOLDER)
        rows, recorded = read_samples(path / FOLDER, sample_bytes)
        in_a_rollout = _samples_of_a_rollout(arguments)
        facts = Facts(
            state=folder.state(metrics.trained),
            error=folder.error,
            done=metrics.trained,
            total=folder.total,
            silent=now - max(metrics.last_time or 0.0, folder.sign.at if folder.sign else 0.0, _last_start(folder)),
            sign=folder.sign,
            curves=curves,
            intervals=evaluations.intervals,
            statuses=groups.statuses,
            samples=in_a_rollout,
            arguments=arguments,
            rows=rows,
            claim=folder.claim,
        )
        alarms = alarms_of(facts)
        scores = scores_of(curves, evaluations.intervals, in_a_rollout)
        seconds = folder.seconds(metrics.first_time, metrics.last_time, now)
        charts = charts_of(curves)
        drawn = {name for chart in charts for name in chart.metrics}
        known = {chart.id for chart in charts}
        alarms = [alarm if alarm.chart in known else replace(alarm, chart=None) for alarm in alarms]
        return Run(
            name=path.resolve().name,
            path=str(path),
            command=str(folder.starts[-1].get("command") or "") if folder.starts else "",
            state=facts.state,
            verdict=verdict(facts, scores, alarms, seconds, bool(arguments.get("early_stopping_patience"))),
            started_at=iso(folder.starts[0].get("at") if folder.starts else metrics.first_time),
            seconds=round(seconds, 1),
            done=metrics.trained,
            total=folder.total,
            resumed=folder.resumed(),
            scores=scores,
            alarms=alarms,
            series={name: _series(name, curves, evaluations.intervals, groups) for name in sorted(drawn)},
            charts=charts,
            time=time_of(curves, seconds),
            samples=Samples(len(rows), in_a_rollout * metrics.trained, [*rows, *evaluations.answers]),
            groups=groups.groups,
            losses=losses_of(curves),
            provenance=_provenance(folder),
            missing=_missing(folder, metrics, recorded, evaluations.left_out),
        )


def _samples_of_a_rollout(arguments: Mapping[str, Any]) -> int:
    prompts, each = arguments.get("rollout_batch_size"), arguments.get("n_samples_per_prompt", 1)
    return prompts * each if isinstance(prompts, int) and isinstance(each, int) else 0


def _last_start(folder: RunFolder) -> float:
    at = folder.starts[-1].get("at") if folder.starts else None
    return float(at) if isinstance(at, (int, float)) else 0.0


def _series(
    name: str, curves: Mapping[str, Curve], intervals: Mapping[str, Mapping[int, Interval]], groups: RecordedGroups
) -> Series:
    """A curve with its band: of evaluations the 95 % interval, of the reward what was recorded of its spread."""
    series = curves[name].series()
    band: list[tuple[float | None, float | None]] | None = None
    if name in intervals:
        known = intervals[name]
        band = [(known[x].low, known[x].high) if x in known else (None, None) for x in series.x]
    elif name == "rollout/raw_reward" and groups.spread:
        band = [_between(groups.spread, x) for x in series.x]
    if band is None:
        return series
    return replace(series, low=[rounded(low) for low, _ in band], high=[rounded(high) for _, high in band])


def _between(spread: Mapping[int, tuple[float, float]], step: int) -> tuple[float | None, float | None]:
    """The spread at a step, between two recorded rollouts in proportion."""
    if step in spread:
        return spread[step]
    before, after = [s for s in spread if s < step], [s for s in spread if s > step]
    if not before or not after:
        return None, None
    left, right = max(before), min(after)
    share = (step - left) / (right - left)
    low, high = (spread[left][i] + (spread[right][i] - spread[left][i]) * share for i in (0, 1))
    return low, high


def _provenance(folder: RunFolder) -> Provenance:
    arguments = [
        Argument(option_name(name), option_in_words(value), folder.provenance.get(name, ""))
        for name, value in folder.arguments.items()
    ]
    arguments.sort(key=lambda argument: (argument.source in ("default", ""), argument.option))
    plugins = [Plugin(name, version, name) for name, version in folder.plugins.items()]
    last = folder.starts[-1] if folder.starts else {}
    versions, hardware = last.get("versions"), last.get("hardware")
    names = ("config.yaml", "metrics.jsonl", "eval", FOLDER, *folder.earlier)
    return Provenance(
        arguments,
        [*(Plugin(f"{role}: {what}", "", "") for role, what in folder.components.items()), *plugins],
        versions if isinstance(versions, dict) else {},
        hardware if isinstance(hardware, dict) else {},
        [str(folder.path / name) for name in names if (folder.path / name).exists()],
    )


def _missing(folder: RunFolder, metrics: Metrics, recorded: int, evaluations_left_out: int) -> list[str]:
    """One sentence for everything that the report would show and does not."""
    found = []
    if not folder.arguments:
        found.append("config.yaml cannot be read, so the options of the run are not shown.")
    if not metrics.curves:
        found.append("The run has logged nothing yet: there are no curves.")
    if metrics.broken:
        found.append(f"{metrics.broken} lines of metrics.jsonl cannot be read and are left out.")
    if not folder.events:
        found.append(
            "The run did not record its starts and ends (it was made without slime-report, or by an earlier version): its command, machine "
            "and versions are not known, and how it ended is told from its metrics."
        )
    if not recorded:
        why = (
            "it was started with --record-samples 0"
            if folder.arguments.get("record_samples") == 0
            else "it recorded none"
        )
        found.append(f"There are no samples of training: {why}.")
    if evaluations_left_out:
        found.append(
            f"The answers of {evaluations_left_out} evaluations were not read, since they are large; their scores have no interval."
        )
    if folder.earlier:
        found.append(
            f"Earlier runs in this folder are in {', '.join(folder.earlier)}; slime report {folder.path}/{folder.earlier[-1]} shows the last of them."
        )
    return found
