"""`render`: the page of a report. Called by `slime report`."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from slime_core.pages import page_environment, visible
from slime_report.page.pack import pack_samples, rounded, script_text
from slime_report.page.words import duration, moment, number, percent
from slime_report.report import Alarm, Report, Run, Samples

PAGE_BYTES = 9_500_000
"""How large a page may become, short of 10 MB."""
LEAST_ROOM = 500_000
"""What samples may take at least, of a page whose curves leave no more."""
SCRIPTS = (
    "words",
    "elements",
    "scales",
    "chart",
    "follow",
    "draw",
    "curves",
    "unpack",
    "images",
    "tokens",
    "list",
    "samples",
    "page",
)
"""The files of the script, in the order in which they are put together."""
SHARES = ("none", "up to ¼", "up to ½", "up to ¾", "below all", "all")
"""What the bins of solved shares are called."""
STATES = {
    "finished": ("good", "Finished"),
    "stopped": ("neutral", "Stopped"),
    "failed": ("bad", "Failed"),
    "crashed": ("bad", "Crashed"),
    "running": ("live", "Running"),
}


def render(report: Report) -> str:
    """Return the whole page of a report as HTML text. It needs no other file and no network.

    It stays under 10 MB: where samples would not fit, the values of their tokens are left out first, and the page says of how many.
    """
    seen = _cached_visible()
    report = _with_names_apart(report)
    charts = _charts(report, seen)
    curves = script_text({"charts": charts, "runs": [_curves(run, charts, seen) for run in report.runs]})
    style, script = _style(), _script()
    body = page_environment("slime_report.page").get_template("report.html.jinja")
    context: dict[str, Any] = {
        "made_at": moment(seen(report.made_at)),
        "slime": seen(report.slime),
        "differences": _seen([asdict(difference) for difference in report.differences], seen),
        "charts": charts,
        "runs": [_told(run, number, charts, seen) for number, run in enumerate(report.runs)],
        "phases": list(dict.fromkeys(seen(phase.phase) for run in report.runs for phase in run.time)),
        "state_names": STATES,
        "shares": SHARES,
        "curves": Markup(curves),
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "number": number,
        "percent": percent,
        "duration": duration,
    }
    without = len(body.render(context, samples=[]).encode())
    room = max(LEAST_ROOM, PAGE_BYTES - without) // max(1, len(report.runs))
    packed = [pack_samples(run.samples.rows, seen, room) for run in report.runs]
    return body.render(context, samples=[Markup(script_text(samples)) for samples in packed])


def _with_names_apart(report: Report) -> Report:
    """The same report, with paths in the place of names that several runs have."""
    names = Counter(run.name for run in report.runs)
    return replace(report, runs=[replace(run, name=run.path) if names[run.name] > 1 else run for run in report.runs])


def _charts(report: Report, seen: Callable[[str], str]) -> list[dict[str, Any]]:
    """The charts of all runs, each once, with the id of its element."""
    charts: dict[str, dict[str, Any]] = {}
    for run in report.runs:
        for chart in run.charts:
            known = charts.setdefault(chart.id, _seen(asdict(chart), seen) | {"element": "", "metrics": []})
            known["metrics"] += [seen(metric) for metric in chart.metrics if seen(metric) not in known["metrics"]]
    elements: set[str] = set()
    for place, (name, chart_seen) in enumerate(charts.items()):
        plain = re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-").lower()
        element = f"chart-{plain}" if plain and f"chart-{plain}" not in elements else f"chart-{place}-{plain}"
        elements.add(element)
        chart_seen["element"] = element
        chart_seen["other"] = name.startswith("metric-")  # a metric that no chart of its own is made for
        chart_seen["evaluates"] = all(metric.startswith("eval") for metric in chart_seen["metrics"])
    return list(charts.values())


def _curves(run: Run, charts: list[dict[str, Any]], seen: Callable[[str], str]) -> dict[str, Any]:
    """What the script draws of a run."""
    elements = {chart["id"]: chart["element"] for chart in charts}
    drawn = {metric for chart in charts for metric in chart["metrics"]}
    return {
        "name": seen(run.name),
        "resumed": [resumed.step for resumed in run.resumed],
        "alarms": [
            {"chart": elements.get(seen(alarm.chart or "")), "step": alarm.step, "text": seen(alarm.text)}
            for alarm in run.alarms
            if alarm.step is not None
        ],
        "series": [
            {
                "metric": seen(metric),
                "x": series.x,
                "y": rounded(series.y),
                "low": rounded(series.low),
                "high": rounded(series.high),
                "points": series.points,
            }
            for metric, series in run.series.items()
            if seen(metric) in drawn
        ],
    }


def _told(run: Run, place: int, charts: list[dict[str, Any]], seen: Callable[[str], str]) -> dict[str, Any]:
    """What the templates say of a run."""
    rows = run.samples.rows
    rowless = replace(run, samples=Samples(run.samples.kept, run.samples.of, []), series={}, alarms=[])
    told: dict[str, Any] = _seen(asdict(rowless), seen)
    kept = Counter(row.prompt for row in rows)
    for kind in ("never", "always"):
        for prompt, group in zip(told["groups"][kind], getattr(run.groups, kind), strict=True):
            prompt["samples"] = kept[group.prompt]
    numbers = {row.id: number for number, row in enumerate(rows)}
    told["alarms"] = [_alarm(alarm, place, charts, numbers, seen) for alarm in run.alarms]
    told["started_at"] = moment(told["started_at"])
    told["resumed"] = [resumed | {"at": moment(resumed["at"])} for resumed in told["resumed"]]
    told["sample_count"] = len(rows)
    told["provenance"]["files"] = [name.removeprefix(f"{told['path']}/") for name in told["provenance"]["files"]]
    return told


def _alarm(
    alarm: Alarm, run: int, charts: list[dict[str, Any]], numbers: dict[str, int], seen: Callable[[str], str]
) -> dict[str, Any]:
    """An alarm with the elements that its links lead to; None where they are not on the page."""
    chart = next((chart for chart in charts if alarm.chart is not None and chart["id"] == seen(alarm.chart)), None)
    sample = numbers.get(alarm.sample) if alarm.sample is not None else None
    told: dict[str, Any] = _seen(asdict(alarm), seen)
    return told | {
        "chart_title": chart and chart["title"],
        "chart_element": chart and chart["element"],
        "sample_element": None if sample is None else f"sample-{run}-{sample}",
    }


def _seen(value: Any, seen: Callable[[str], str]) -> Any:
    """The same plain data with every text made visible."""
    if isinstance(value, str):
        return seen(value)
    if isinstance(value, dict):
        return {_seen(key, seen): _seen(inner, seen) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_seen(inner, seen) for inner in value]
    return value


def _cached_visible() -> Callable[[str], str]:
    """`visible`, which is asked for the same few thousand texts of tokens again and again."""
    return lru_cache(1 << 17)(visible)


@cache
def _style() -> str:
    return (files("slime_report.page") / "templates" / "report.css").read_text("utf-8")


@cache
def _script() -> str:
    folder = files("slime_report.page") / "templates" / "script"
    parts = [(folder / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
