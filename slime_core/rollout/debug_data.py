"""Rollouts that are written to files and read again: `--save-debug-rollout-data`, `--load-debug-rollout-data`.

A file whose name ends with `.jsonl` or `.json` is JSON lines, every other a file of samples (`slime_core.data.sample_files`), whatever it is
called. Reading looks at the content alone.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from slime_core.data.sample_files import PackedSamples
from slime_core.data.sample_lines import is_json, open_samples
from slime_core.errors import DataError
from slime_core.sample import Group, RolloutOutput
from slime_core.start_up import collecting_seldom


def write_debug_data(path: Path, output: RolloutOutput) -> None:
    """Write a rollout: its metrics, and its samples with the numbers of their groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_json(path):
        groups = [number for number, group in enumerate(output.groups) for _ in group]
        PackedSamples(output.samples, groups, {"metrics": output.metrics}).write(path)
        return
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"metrics": output.metrics}) + "\n")
        for number, group in enumerate(output.groups):
            for sample in group:
                file.write(json.dumps({"group": number, **sample.to_dict()}) + "\n")


def read_debug_data(path: Path, most: int | None = None) -> RolloutOutput:
    """Read a rollout that `write_debug_data` wrote.

    Args:
        most: read its first samples alone, so many.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        file = open_samples(path)
        groups: dict[int, Group] = {}
        with collecting_seldom():
            for stored in islice(file.read(), most):
                if stored.group is None or stored.rows:
                    raise DataError("it holds samples that are in no group, as a dump's are")
                groups.setdefault(stored.group, []).append(stored.sample)
        return RolloutOutput(list(groups.values()), _numbers(file.head.get("metrics")))
    except (OSError, DataError) as error:
        raise DataError(
            f"--load-debug-rollout-data: {path} cannot be read: {error}. Give the path that --save-debug-rollout-data wrote."
        ) from error


def _numbers(metrics: Any) -> dict[str, float]:
    """Return metrics. Raises `DataError` where they are none."""
    if not isinstance(metrics, dict) or not all(type(value) in (int, float) for value in metrics.values()):
        raise DataError("its metrics are no object of numbers")
    return metrics
