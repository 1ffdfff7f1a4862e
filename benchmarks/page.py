"""One page of all results: `python -m benchmarks.page` writes benchmarks/RESULTS.md from the files in benchmarks/results."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.on_gpu.kept import section
from benchmarks.processes import ROOT
from benchmarks.quiet import sentence
from benchmarks.ratios import READERS, numbers, ratios_of
from benchmarks.report import RESULTS, spread

PAGE = ROOT / "benchmarks" / "RESULTS.md"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks.page` from `benchmarks/results`. A ratio compares two processes that ran in turn on one machine, or",
        "with a limit of that machine measured beside them; a higher one is better. Median (lowest to highest) of the repeats. `load` is the",
        "load average of the machine when a run began, its own benchmark's last run included; above about 1 something else was running.",
    ]
    for name in sorted(READERS):
        file = RESULTS / f"{name}.json"
        if not file.exists():
            continue
        results = json.loads(file.read_text(encoding="utf-8"))
        lines += ["", f"## {name}", "", f"`{results.get('command', 'unknown')}` on {_machine(results)}", ""]
        lines += ["| ratio | |", "|---|---|"]
        lines += [f"| {what} | {spread(values, '×', 2)} |" for what, values in ratios_of(file).items() if values]
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        if tables := results.get("tables") if isinstance(results, dict) else None:
            lines += ["", f"## {file.stem}", "", f"`{results['command']}` on {_machine(results)}"]
            lines += [line for found in tables for line in ("", *found.split("\n"))]
    for file in sorted(RESULTS.glob("gpu-*.json")):
        lines += section(file)
    return "\n".join(lines) + "\n"


def _machine(results: dict[str, Any]) -> str:
    about = results.get("machine")
    where = f"{about['processor']}, {about['cores']} cores" if isinstance(about, dict) else "an unnamed machine"
    loads, others = numbers(results, "load_before"), numbers(results, "others")
    loaded = f"{where}; load {min(loads):.1f} to {max(loads):.1f}" if loads else where
    return f"{loaded}. {sentence(others)}" if others else loaded


if __name__ == "__main__":
    main()
