"""The file of results of `benchmarks.gpu`: a line of JSON for each job that was done, written at once; and what is printed of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "results.jsonl"
TRACEBACK = 1500
"""Characters of the end of a traceback that are printed; the file has more."""


def append(out: Path, line: dict[str, Any]) -> None:
    """Write a line, and see to it that it is on disk."""
    with (out / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines that are there; of a line that was cut off nothing."""
    found = []
    if (folder / FILE).is_file():
        for text in (folder / FILE).read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return found


def newest(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last line of each job, by its name."""
    return {line["job"]: line for line in lines if "job" in line}


def table(about: dict[str, Any], lines: list[dict[str, Any]], left: list[str]) -> str:
    """All results as Markdown, what matters most last: the end of what is printed is what is seen.

    Args:
        about: the machine and the code.
        left: the names of jobs that were not done.
    """
    found = newest(lines)
    failed = [name for name, line in found.items() if line["status"] == "failed"]
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    text = [f"# {about.get('device', 'unknown device')}", ""]
    for name in failed:
        text += [f"## {name} failed", "", *[f"- {words}" for words in found[name].get("outside", [])], ""]
        if trace := found[name].get("traceback"):
            text += ["```", trace[-TRACEBACK:].rstrip(), "```", ""]
    for name, line in found.items():
        if kernels := line["found"].get("kernels"):
            text += [f"## Kernels of {name}", "", "| ms | share | calls | name |", "|---|---|---|---|"]
            text += [f"| {k['ms']} | {100 * k['share']:.1f} % | {k['calls']} | {_cell(k['name'])} |" for k in kernels]
            text.append("")
        if waits := line["found"].get("waits"):
            text += [f"## Where the host waits for the device, {name}", "", "| times | place |", "|---|---|"]
            text += [*(f"| {count} | {place} |" for place, count in waits.items()), ""]
    text += ["## Results", "", f"commit {about.get('commit', 'unknown')}; {versions}", ""]
    text += ["| job | result | seconds | figures |", "|---|---|---|---|"]
    for name, line in found.items():
        text.append(f"| {name} | {line['status']} | {line['seconds']:.1f} | {_figures(name, line)} |")
    text += ["", f"{len(found)} jobs, {len(failed)} failed: {', '.join(failed) or 'none'}"]
    if left:
        text += [f"Not done: {', '.join(left)}. The same command with `--earlier FOLDER` goes on."]
    return "\n".join(text) + "\n"


def _figures(name: str, line: dict[str, Any]) -> str:
    """The figures of a job in a cell: of a check, the one nearest to its bound is not known, so the number of them."""
    found = line["found"]
    if line["status"] in ("skipped", "failed") and line.get("why"):
        numbers = [f"{key} {_number(value)}" for key, value in found.items() if isinstance(value, (bool, int, float))]
        return _cell("; ".join([line["why"][:300], *numbers[:12]]))
    if name.startswith("checks/") and len(found) > 12:
        worst = max((value for value in found.values() if isinstance(value, float)), default=0.0)
        return f"{len(found)} comparisons, largest {worst:.2e}"
    cells = []
    for key, value in found.items():
        if isinstance(value, dict) and key not in ("waits",):
            inner = ", ".join(f"{k} {_number(v)}" for k, v in value.items())
            cells.append(f"**{key}**: {inner}")
        elif not isinstance(value, (list, dict)):
            cells.append(f"{key} {_number(value)}")
    return _cell("; ".join(cells))


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
