"""Whether the project is still as fast as it was: `python -m benchmarks.compare`, about fifteen minutes on a quiet CPU.

Runs the short form of the benchmarks of which a ratio is kept, and compares each ratio (against a peer or a limit of the machine, measured
in the same run) with the one in benchmarks/results/short.json. Ends with status 1 where one fell by more than its noise: a tenth, or
what the kept repeats differ by, whichever is more. `--keep` writes the new ratios in place of the kept ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import ROOT, measured_environment
from benchmarks.quiet import add_option
from benchmarks.ratios import Ratios, ratios_of
from benchmarks.report import RESULTS, machine, spread, tell, versions

SHORT: dict[str, tuple[str, ...]] = {
    "start": ("start", "--repeats", "3"),
    "sft-cpu": ("sft", "--repeats", "3", "--steps", "2", "--without", "TRL, tuned"),
    "rollout-cpu": ("rollout", "--repeats", "3", "--prompts", "4", "--longest", "48"),
    "grpo-cpu": ("grpo", "--repeats", "3", "--prompts", "4", "--without", "TRL, tuned"),
}
"""The file that a benchmark writes → its words behind `python -m benchmarks.`."""
NOISE = 0.1
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
        return middle * (1 - max(NOISE, (max(self.kept) - min(self.kept)) / middle))

    @property
    def fell(self) -> bool:
        """Whether it is worse than noise explains, or gone."""
        return bool(self.kept) and (not self.found or median(self.found) < self.lowest)

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
    parser.add_argument("--keep", action="store_true", help="keep the new ratios, whatever they are")
    add_option(parser)
    options = parser.parse_args()
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    load = os.getloadavg()[0]
    found = {name: measured(name, options.under_load) for name in options.only}
    before = {name: kept.get("ratios", {}).get(name, {}) for name in options.only}
    verdicts = [verdict for name in options.only for verdict in compared(name, before[name], found[name])]
    print(table(verdicts, kept, load))
    if options.keep:
        about = {"machine": machine(os.cpu_count() or 1), "versions": versions("slime-core", "torch", "transformers")}
        words = {name: f"python -m benchmarks.{' '.join(SHORT[name])}" for name in SHORT}
        ratios = {**kept.get("ratios", {}), **found}
        KEPT.write_text(
            json.dumps({"commands": words, **about, "load_before": load, "ratios": ratios}, indent=1) + "\n"
        )
    elif any(verdict.fell for verdict in verdicts):
        raise SystemExit(1)


def measured(name: str, under_load: bool = False) -> Ratios:
    """The ratios of a short benchmark, run now."""
    tell(f"python -m benchmarks.{' '.join(SHORT[name])}")
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**measured_environment(), "SLIME_BENCHMARK_RESULTS": scratch}
        benchmark, *words = SHORT[name]
        more = ["--under-load"] if under_load else []
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *words, *more]
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=-3)
        return ratios_of(Path(scratch) / f"{name}.json")


def compared(benchmark: str, kept: Ratios, found: Ratios) -> list[Verdict]:
    """Every ratio that is kept or found."""
    return [
        Verdict(benchmark, name, kept.get(name, []), found.get(name, [])) for name in dict.fromkeys([*kept, *found])
    ]


def table(verdicts: list[Verdict], kept: dict[str, Any], load: float) -> str:
    """All of them as Markdown."""
    lines = ["| benchmark | ratio | kept | now | must reach | |", "|---|---|---|---|---|---|"]
    lines += [verdict.line() for verdict in verdicts]
    then = kept.get("machine", {}).get("processor", "—")
    lines += ["", f"Kept on: {then}. Now on: {machine(1)['processor']}, load average before {load:.1f}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
