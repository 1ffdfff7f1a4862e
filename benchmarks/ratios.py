"""What of the stored results is worth keeping: ratios that do not depend on how fast the machine is. A higher one is better.

Read by `benchmarks.compare` and `benchmarks.page`, from the files in benchmarks/results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Ratios = dict[str, list[float]]
"""By name, one for each repeat."""

Results = dict[str, Any]


def ratios_of(file: Path) -> Ratios:
    """Return the ratios of a file of results; none of one that has none, or that is not there."""
    read = READERS.get(file.stem)
    return read(json.loads(file.read_text(encoding="utf-8"))) if read is not None and file.exists() else {}


def numbers(found: Any, key: str) -> list[float]:
    """All numbers under this key in a file of results, however deep, and however many at each place."""

    def of(value: Any, within: bool) -> Iterator[float]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from of(inner, within or name == key)
        elif isinstance(value, list):
            for inner in value:
                yield from of(inner, within)
        elif within:
            yield value

    return list(of(found, False))


def _runs(results: Results, key: str, ours: tuple[str, ...], higher: bool, what: str) -> Ratios:
    """How much better each of ours is than each of the others, run by run.

    Args:
        key: of a run, what is compared.
        higher: whether more of it is better.
    """
    runs = results["runs"]
    found: Ratios = {}
    for own in ours:
        for other in runs:
            if own in runs and other not in ours:
                pairs = [(a[key], b[key]) for a, b in zip(runs[own], runs[other], strict=False)]
                name = f"{what}: {own} against {other}"
                found[name] = [a / b if higher else b / a for a, b in pairs]
    return found


def _sft(results: Results) -> Ratios:
    ours = ("slime", "slime, two ranks")
    found = _runs(results, "tokens_per_second", ours, True, "speed")
    found |= _runs(results, "peak_gib", ours, False, "memory")
    peak = max(results["gemm_peak_gflops"])
    per_token = results["flops"] / results["tokens"] / 1e9
    for name in ours:
        shares = [run["tokens_per_second"] * per_token / peak for run in results["runs"].get(name, [])]
        if shares:
            found["share of the matrix-product limit" + name.removeprefix("slime")] = shares
    return found


def _rollout(results: Results) -> Ratios:
    return _runs(results, "tokens_per_second", ("slime",), True, "speed")


def _grpo(results: Results) -> Ratios:
    ours = ("slime, all samples", "slime, its defaults")
    return _runs(results, "step", ours, False, "speed") | _runs(results, "peak_gib", ours, False, "memory")


def _ranks(results: Results) -> Ratios:
    runs = results["runs"]
    found: Ratios = {}
    for name in (name for name in runs if name.startswith("two ranks")):
        for kind, what in (
            ("one rank", "twice the speed of one rank"),
            ("two separate runs at once", "the speed of two separate runs"),
        ):
            found[f"{name}: share of {what}"] = [
                a["step"] / (2 * b["step"]) for a, b in zip(runs[kind], runs[name], strict=True)
            ]
    return found


def _asynchronous(results: Results) -> Ratios:
    return _runs(results, "step", ("one step off", "fully asynchronous"), False, "speed")


def _ray(results: Results) -> Ratios:
    runs = results["runs"]
    pairs = {"the random model": ("tiny, in process", "tiny, on Ray"), "the model": ("in process", "one rank on Ray")}
    return {
        f"{model}: in process ÷ on Ray": [a["step"] / b["step"] for a, b in zip(runs[here], runs[there], strict=True)]
        for model, (here, there) in pairs.items()
    }


def _megatron(results: Results) -> Ratios:
    return _runs(results, "tokens_per_second", ("megatron",), True, "speed")


def _start(results: Results) -> Ratios:
    seconds = results["seconds"]
    imports = seconds["imports alone"]
    return {
        f"{name}: imports alone ÷ all": [a / b for a, b in zip(imports, seconds[name], strict=True)]
        for name in ("slime check, the first of a model", "slime check", "slime train, first step")
        if name in seconds
    }


def _vision(results: Results) -> Ratios:
    return _runs(results, "images_per_cpu_second", ("slime",), True, "speed") | _runs(
        results, "peak_mib", ("slime",), False, "memory"
    )


READERS: dict[str, Callable[[Results], Ratios]] = {
    "cluster-async": _asynchronous,
    "cluster-dp": _ranks,
    "cluster-ray": _ray,
    "grpo-cpu": _grpo,
    "megatron-cpu": _megatron,
    "rollout-cpu": _rollout,
    "sft-cpu": _sft,
    "start": _start,
    "vision": _vision,
}
"""By the name of the file."""
