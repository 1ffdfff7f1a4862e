"""What a run leaves behind, compared with what another one left: every number that does not depend on the clock. Used by
`benchmarks.kills` and by the tests of invariants."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slime_core.data.sample_files import SampleFile
from slime_core.run.state_samples import SAMPLES
from slime_core.run.tracking import read_metrics

POINTERS = ("latest_checkpointed_iteration.txt", "best_checkpointed_iteration.txt")


def differences(one: Path, other: Path) -> list[str]:
    """One phrase for each thing that differs between two runs, of each of which one folder is `--run-dir` and `--save`, and has the
    exports of `--save-hf` in folders `hf…`: metrics, answers of evaluations, checkpoints (weights, optimizer, random states, data
    source), exported models."""
    found = [*_of_metrics(one, other)]
    for pattern in ("eval/*", "hf*/**/*", *POINTERS):
        found += _of_files(one, other, pattern)
    found += _of_names(_names(one, "iter_*"), _names(other, "iter_*"))
    for name in sorted(_names(one, "iter_*") & _names(other, "iter_*")):
        found += _of_checkpoints(one / name, other / name)
    return found


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name != "time" and not name.startswith("perf/")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def trained_state(folder: Path) -> dict[str, Any]:
    """Everything that the torch train backend stored in a folder, by name."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.NamedTemporaryFile() as file:
        dcp_to_torch_save(folder, file.name)
        state: dict[str, Any] = torch.load(file.name, weights_only=True)
    return state


def _of_metrics(one: Path, other: Path) -> Iterator[str]:
    lines = [numbers(folder) for folder in (one, other)]
    if len(lines[0]) != len(lines[1]):
        yield f"metrics: {len(lines[0])} and {len(lines[1])} lines"
    for a, b in zip(*lines, strict=False):
        for name in sorted(a.keys() | b.keys()):
            if repr(a.get(name)) != repr(b.get(name)):  # NaN is NaN
                yield f"metrics: {name} of rollout {a['rollout_id']} is {a.get(name)} and {b.get(name)}"


def _names(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob(pattern)}


def _of_names(one: set[str], other: set[str]) -> list[str]:
    return [f"{name} is only in one" for name in sorted(one ^ other)]


def _of_files(one: Path, other: Path, pattern: str, where: str = "") -> Iterator[str]:
    names = [_names(folder, pattern) for folder in (one, other)]
    yield from _of_names(*names)
    for name in sorted(names[0] & names[1]):
        if (one / name).is_file() and (one / name).read_bytes() != (other / name).read_bytes():
            yield f"{where}{name} differs"


def _of_checkpoints(one: Path, other: Path) -> Iterator[str]:
    states = [json.loads((folder / "state.json").read_text(encoding="utf-8")) for folder in (one, other)]
    for state in states:
        if state["prefetched"]:
            del state["prefetched"]["seconds"]  # that it took
    yield from _of_values(*states, where=f"{one.name}/state.json")
    yield from _of_values(*map(_samples, (one, other)), where=f"{one.name}/{SAMPLES}")
    names = [_names(folder, "trainer/**/*") for folder in (one, other)]
    yield from _of_names(*names)
    for name in sorted(names[0] & names[1]):
        if name.endswith(".metadata"):  # which describes the *.distcp files beside it
            folders = [(folder / name).parent for folder in (one, other)]
            yield from _of_values(*map(trained_state, folders), where=f"{one.name}/{Path(name).parent}")
        elif not name.endswith(".distcp"):
            yield from _of_files(one, other, name, f"{one.name}/")


def _samples(checkpoint: Path) -> list[dict[str, Any]]:
    """The samples that the state of a checkpoint refers to."""
    file = checkpoint / SAMPLES
    return [stored.sample.to_dict() for stored in SampleFile(file).read()] if file.exists() else []


def _of_values(one: Any, other: Any, where: str) -> Iterator[str]:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if not torch.equal(one, other):
            yield f"{where} differs"
    elif isinstance(one, dict) and isinstance(other, dict):
        yield from (f"{where}/{name} is only in one" for name in sorted(map(str, one.keys() ^ other.keys())))
        for name in one.keys() & other.keys():
            yield from _of_values(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _of_values(*pair, where=f"{where}/{number}")
    elif repr(one) != repr(other):
        yield f"{where} differs"
