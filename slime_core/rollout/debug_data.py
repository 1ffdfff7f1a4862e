"""Rollouts that are written to files and read again: `--save-debug-rollout-data`, `--load-debug-rollout-data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slime_core.errors import DataError, SampleError
from slime_core.plain import read_json
from slime_core.sample import Group, RolloutOutput, Sample


def write_debug_data(path: Path, output: RolloutOutput) -> None:
    """Write a line of metrics, and then one line per sample; `group` is the number of its group in the rollout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"metrics": output.metrics}]
    lines += [{"group": g, **sample.to_dict()} for g, group in enumerate(output.groups) for sample in group]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_debug_data(path: Path) -> RolloutOutput:
    """Read a rollout that `write_debug_data` wrote.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        head, *lines = [read_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        groups: dict[int, Group] = {}
        for line in lines:
            groups.setdefault(int(line.pop("group")), []).append(Sample.from_dict(line))
        return RolloutOutput(list(groups.values()), _numbers(head["metrics"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError, SampleError) as error:
        raise DataError(
            f"--load-debug-rollout-data: {path} cannot be read: {error}. Give the path that --save-debug-rollout-data wrote."
        ) from error


def _numbers(metrics: Any) -> dict[str, float]:
    """Return metrics. Raises `DataError` where they are none."""
    if not isinstance(metrics, dict) or not all(type(value) in (int, float) for value in metrics.values()):
        raise DataError("its metrics are no object of numbers")
    return metrics
