"""`slime report RUN [RUN …]`: writes the page and its JSON twin, or past metrics for TensorBoard."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core import __version__
from slime_core.display import told
from slime_core.errors import ArgumentError
from slime_core.output import writing
from slime_core.whole_file import write_whole
from slime_report.page import render
from slime_report.reading.compare import differences_of
from slime_report.reading.run import RunReader
from slime_report.reading.samples import BYTES
from slime_report.report import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slime_core.plugins import Plugins

EVERY_S = 10.0


def main(argv: list[str], plugins: Plugins) -> int:
    """Show runs on one page. Works for runs that are finished, stopped, killed or going on."""
    parser = argparse.ArgumentParser(
        prog="slime report",
        description="Show runs on one page that needs no network: alarms in words, curves, where the time went, samples with their "
        "tokens, groups, lost data and options. Several runs are compared.",
        epilog="docs/read-a-run.md says what the page shows and what to do about each alarm.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where the page goes; its JSON twin goes beside it. Default: report.html in RUN, of several comparison.html in the first. With "
        "--to tensorboard a folder; default: tensorboard in RUN.",
    )
    parser.add_argument("--json", action="store_true", help="also print the JSON twin, in place of the summary")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=EVERY_S,
        type=_seconds,
        metavar="SECONDS",
        help=f"write the page again every so many seconds ({EVERY_S:g}) until all runs have ended",
    )
    parser.add_argument(
        "--to", choices=["html", "tensorboard"], default="html", help="write TensorBoard's event files instead"
    )
    options = parser.parse_args(argv)
    paths = [Path(run) for run in options.runs]
    if options.to == "tensorboard":
        if options.watch is not None or options.json:
            raise ArgumentError("--to tensorboard writes past metrics once; leave out --watch and --json.")
        return _to_tensorboard(paths, options.out)
    readers = [RunReader(path) for path in paths]
    out = Path(options.out) if options.out else paths[0] / ("report.html" if len(paths) == 1 else "comparison.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(
            f"--out is {out}; expected a file whose name ends in .html, beside which its twin .json goes."
        )
    while True:
        report = make_report(readers)
        write_report(report, out)
        if options.json:
            print(report.twin(), flush=True)
        else:
            print(told("\n".join([*_summary(report), f"report: {out}"])), flush=True)
        if options.watch is None or all(run.state != "running" for run in report.runs):
            return 0
        time.sleep(options.watch)


def make_report(readers: Sequence[RunReader]) -> Report:
    """The report on runs as they are now."""
    runs = [reader.read(BYTES // len(readers)) for reader in readers]
    differences = differences_of([reader.arguments for reader in readers]) if len(readers) > 1 else []
    return Report(datetime.now().astimezone().isoformat(timespec="seconds"), __version__, runs, differences)


def write_report(report: Report, out: Path) -> None:
    """Write the page, and beside it the JSON twin.

    Raises:
        OutputError: the folder cannot be written into.
    """
    with writing("The report", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, render(report))
        write_whole(out.with_suffix(".json"), report.twin() + "\n")


def _summary(report: Report) -> list[str]:
    """What the terminal says: of every run its verdict and its alarms."""
    lines = []
    for run in report.runs:
        lines.append(f"{run.name}: {run.verdict}")
        lines += [f"  {alarm.id}: {alarm.text}" for alarm in run.alarms]
        lines += [f"  not shown: {sentence}" for sentence in run.missing]
    return lines


def _to_tensorboard(paths: Sequence[Path], out: str | None) -> int:
    from slime_report.tensorboard import write_events

    if out is not None and len(paths) > 1:
        folders = [Path(out) / path.resolve().name for path in paths]
        if len(set(folders)) < len(folders):
            raise ArgumentError(
                "--out: two of the runs have the same name, so their folders would be one; give them one at a time."
            )
    else:
        folders = [Path(out) if out else path / "tensorboard" for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        RunReader(path)  # refuses what is no run
        count = write_events(path / "metrics.jsonl", folder)
        print(told(f"{count} values of {path} are in {folder}; look at them with: tensorboard --logdir {folder}"))
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds between 0.1 and 86400, given {text!r}")
    return seconds
