"""Whether the project is still as fast as it was: `python -m benchmarks.compare`, about six minutes on a quiet CPU.

Runs the short form of the benchmarks of which a ratio is kept, and compares each ratio (against a peer or a limit of the machine, measured
in the same run) with the one in benchmarks/results/short.json. Ends with status 1 where one fell by more than its noise: a tenth, or
what the kept repeats differ by, whichever is more, but at most half; what fell is measured once more before it counts. Ends with status 2 where
nothing is kept of a benchmark, or it could not be run, such as on a busy machine. `--keep` writes the new ratios in place of the kept
ones, each benchmark's when it has ended, with the share of the processors that others used; `--add` writes them beside those, as more
repeats: a machine differs more from one day to the next than within minutes, and only what was kept on several days tells by how much.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import ROOT, measured_environment
from benchmarks.quiet import MOST, add_option, sentence
from benchmarks.ratios import Ratios, numbers, ratios_of
from benchmarks.report import RESULTS, machine, spread, tell, versions

WITHOUT = ("--without", "TRL, tuned")
SHORT: dict[str, tuple[str, ...]] = {
    "start": ("start", "--repeats", "2"),
    "sft-cpu": ("sft", "--repeats", "2", "--steps", "2", "--batch-size", "3", *WITHOUT, "slime, two ranks"),
    "rollout-cpu": ("rollout", "--repeats", "2", "--prompts", "4", "--longest", "48"),
    "grpo-cpu": ("grpo", "--repeats", "2", "--prompts", "4", *WITHOUT, "slime, its defaults"),
}
"""The file that a benchmark writes → its words behind `python -m benchmarks.`."""
NOISE, MOST_NOISE = 0.1, 0.5
KEPT = RESULTS / "short.json"


@dataclass(frozen=True)
class Verdict:
    """One ratio, then and now.

    Attributes:
        kept: the repeats that are kept; [] of a ratio that is new.
        found: the repeats of now; [] of one that is not measured any more.
    """

    benchmark: str
    name: str
    kept: list[float]
    found: list[float]

    @property
    def lowest(self) -> float:
        """What the median of now must reach."""
        middle = median(self.kept)
        return middle * (1 - min(MOST_NOISE, max(NOISE, (max(self.kept) - min(self.kept)) / middle)))

    @property
    def fell(self) -> bool:
        """Whether it is worse than noise explains, or gone."""
        return bool(self.kept) and (not self.found or median(self.found) < self.lowest)

    @property
    def told(self) -> str:
        """How far it fell."""
        now = f"{median(self.found):.2f}" if self.found else "not measured any more"
        return f"{now}, was {median(self.kept):.2f}, must reach {self.lowest:.2f}"

    def line(self) -> str:
        """Of the table."""
        cells = [spread(values, "", 2) if values else "—" for values in (self.kept, self.found)]
        limit = f"{self.lowest:.2f}" if self.kept else "new"
        return (
            f"| {self.benchmark} | {self.name} | {cells[0]} | {cells[1]} | {limit} | {'FELL' if self.fell else 'ok'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SHORT), choices=list(SHORT), help="results to compare")
    keeping = parser.add_mutually_exclusive_group()
    keeping.add_argument("--keep", action="store_true", help="keep the new ratios, whatever they are")
    keeping.add_argument("--add", action="store_true", help="keep them beside those that are kept, of the same code")
    add_option(parser)
    options = parser.parse_args()
    before = read()
    verdicts: list[Verdict] = []
    others: list[float] = []
    missing: list[str] = []
    for name in options.only:
        kept = before["benchmarks"].get(name, {})
        if not kept and not options.keep:
            tell(f"{name}: no ratios of it are kept in {KEPT}; --keep keeps those that are found.")
            missing.append(name)
            continue
        try:
            found = measured(name, options.under_load)
            if any(verdict.fell for verdict in compared(name, kept.get("ratios", {}), found["ratios"])):
                tell(f"{name}: a ratio fell; once more, to see whether it is chance")
                found = together(found, measured(name, options.under_load))
        except BenchmarkFailed as error:
            tell(f"{name}: {error}")
            missing.append(name)
            continue
        others += found["others"]
        verdicts += compared(name, kept.get("ratios", {}), found["ratios"])
        if options.keep:
            keep(name, found)
        elif options.add:
            keep(name, together(kept, found))
    print(table(verdicts, before))
    if others:
        print(sentence(others))
    fell = [verdict for verdict in verdicts if verdict.fell]
    for verdict in fell:
        print(f"FELL: {verdict.benchmark}, {verdict.name}: {verdict.told}")
    for name in missing:
        print(f"NOT COMPARED: {name}; why is said above.")
    if missing:
        raise SystemExit(2)
    if fell and not (options.keep or options.add):
        raise SystemExit(1)


class BenchmarkFailed(Exception):
    """A benchmark ended without results."""


def read() -> dict[str, Any]:
    """What is kept."""
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"benchmarks": {}}
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    """Keep what was measured of one benchmark, beside what is kept of the others."""
    kept = read()
    kept["benchmarks"] = {**kept["benchmarks"], name: found}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def measured(name: str, under_load: bool = False) -> dict[str, Any]:
    """The ratios of a short benchmark, run now, and what they depend on.

    Raises:
        BenchmarkFailed: it refused the machine, or failed, or found nothing to compare; it has said why.
    """
    words = shlex.join(SHORT[name])
    tell(f"python -m benchmarks.{words}")
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**measured_environment(), "SLIME_BENCHMARK_RESULTS": scratch}
        command = [sys.executable, "-m", f"benchmarks.{SHORT[name][0]}", *SHORT[name][1:]]
        more = ["--under-load"] if under_load else []
        started = time.monotonic()
        status = subprocess.run([*command, *more], cwd=ROOT, env=environment, stdout=-3).returncode
        file = Path(scratch) / f"{name}.json"
        ratios = ratios_of(file) if not status else {}
        if not ratios:
            raise BenchmarkFailed(f"python -m benchmarks.{words} ended with status {status} and without ratios.")
        about = {"command": f"python -m benchmarks.{words}", "seconds": round(time.monotonic() - started)}
        about |= {"machine": machine(os.cpu_count() or 1), "versions": versions("slime-core", "torch", "transformers")}
        return {**about, "others": numbers(json.loads(file.read_text(encoding="utf-8")), "others"), "ratios": ratios}


def together(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What two runs of a benchmark found, as more repeats of one."""
    ratios = {name: [*values, *second["ratios"].get(name, [])] for name, values in first["ratios"].items()}
    return {**second, "others": first["others"] + second["others"], "ratios": second["ratios"] | ratios}


def compared(benchmark: str, kept: Ratios, found: Ratios) -> list[Verdict]:
    """Every ratio that is kept or found."""
    return [
        Verdict(benchmark, name, kept.get(name, []), found.get(name, [])) for name in dict.fromkeys([*kept, *found])
    ]


def table(verdicts: list[Verdict], kept: dict[str, Any]) -> str:
    """All of them as Markdown."""
    lines = ["| benchmark | ratio | kept | now | must reach | |", "|---|---|---|---|---|---|"]
    lines += [verdict.line() for verdict in verdicts]
    then = sorted({found["machine"]["processor"] for found in kept["benchmarks"].values()})
    lines += ["", f"Kept on: {', '.join(then) or '—'}. Now on: {machine(1)['processor']}."]
    loaded = [name for name, found in kept["benchmarks"].items() if max(found["others"], default=0.0) > MOST]
    return "\n".join([*lines, *([f"Kept figures that were taken under load: {', '.join(loaded)}."] if loaded else [])])


if __name__ == "__main__":
    main()
