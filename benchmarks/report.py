"""What the benchmarks say about their figures: the command, the machine, the versions, the spread."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import ROOT

RESULTS = Path(os.environ.get("SLIME_BENCHMARK_RESULTS", ROOT / "benchmarks" / "results"))
"""Where results are kept; the variable puts those of a trial elsewhere."""


def command(name: str) -> str:
    """The command line of `benchmarks.NAME`, whose process this is."""
    return " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    names = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    about = {"processor": ", ".join(sorted(names)), "cores": os.cpu_count(), "threads": threads}
    return {**about, "memory_gib": round(memory, 1), "platform": platform.platform()}


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of those of these packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def spread(values: list[float], unit: str, digits: int) -> str:
    """Median (lowest to highest)."""
    return f"{median(values):.{digits}f}{unit} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def keep(name: str, called: str, tables: list[str], load: float, **found: Any) -> None:
    """Keep results whose tables stand on the page as they are.

    Args:
        name: of the file, without ending.
        called: the command line.
        tables: in Markdown.
        load: the load average of the machine when the benchmark began.
        found: what they were made of.
    """
    RESULTS.mkdir(exist_ok=True)
    about = {"command": called, "machine": machine(1), "load_before": load, "tables": tables}
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, **found}, indent=1) + "\n")


def tell(text: str) -> None:
    """How it goes, for whoever waits."""
    print(text, file=sys.stderr, flush=True)
