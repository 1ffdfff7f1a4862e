"""How fast new weights reach the engine: `python -m benchmarks.weight_sync`, on a CPU in about four minutes, in fifteen
with SGLang.

For models of up to three sizes, each in fp32 and with one thread per process:

* in place: trainer and embedded engine in one process, which copies the weights once. Beside it stands a plain copy of as
  many tensors of the same shapes.
* Ray: the trainer's actor puts them into the object store, the rollout worker's actor copies them into its engine.
* SGLang: to one real server, by each `--update-weight-transport`; the server is paused, and the weights are verified.

Each is what a run does between two rollouts (`slime_core.run.run.Run.sync_weights`), several times in a process of its own;
the first time, in which engines are set up, is left out. They take turns. Prints seconds and MB/s, and writes them to
benchmarks/results. SGLang is measured where it can be imported; `bash scripts/test-sglang.sh` makes such an environment.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import prepared, random_model, run_together, unwind_on_signals
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

PACKAGES = ("slime-core", "torch", "transformers", "ray", "sglang")
SGLANG = ("--rollout-engine", "sglang", "--update-weight-transport")


@dataclass(frozen=True)
class Way:
    """A way to the engine: what the report calls it, and what chooses it on slime's command line."""

    title: str
    flags: tuple[str, ...] = ()


WAYS = {
    "copy": Way("plain copy in memory"),
    "in-place": Way("in place", ("--rollout-engine", "local")),
    "ray": Way("Ray", ("--rollout-engine", "local", "--ray-address", "local")),
    "sglang-nccl": Way("SGLang, nccl (gloo on a CPU)", (*SGLANG, "nccl", "--no-use-fault-tolerance")),
    "sglang-nccl-kept": Way("SGLang, nccl, with a copy to restart from", (*SGLANG, "nccl")),
    "sglang-tensor": Way("SGLang, tensor", (*SGLANG, "tensor", "--no-use-fault-tolerance")),
    "sglang-disk": Way("SGLang, disk", (*SGLANG, "disk")),
}
SIZES = ("tiny", "small", "SmolLM2-135M-Instruct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="processes of each")
    parser.add_argument("--updates", type=int, default=6, help="updates per process; the first is not timed")
    parser.add_argument("--sizes", nargs="+", default=SIZES[1:], choices=SIZES, help="models")
    parser.add_argument(
        "--only", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY", help=", ".join(WAYS)
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, once, to see that it works; not written")
    parser.add_argument("--worker", nargs=4, metavar=("WAY", "MODEL", "UPDATES", "FOLDER"), help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    unwind_on_signals()
    if options.worker:
        way, model, updates, folder = options.worker
        work = hand_over if WAYS[way].flags else copy
        found = work(WAYS[way].flags, Path(model), int(updates), Path(folder))
        Path(folder, "result.json").write_text(json.dumps(found))
        return
    if options.quick:
        options.repeats, options.updates, options.sizes = 1, 3, ["tiny"]
    if options.updates < 2:
        parser.error("--updates must be at least 2, since the first is not timed")
    ways = possible(options.only)
    with tempfile.TemporaryDirectory() as scratch:
        models = {size: _model(size, Path(scratch)) for size in options.sizes}
        megabytes = {size: megabytes_of(model) for size, model in models.items()}
        seconds: dict[str, dict[str, list[float]]] = {size: {way: [] for way in ways} for size in models}
        others: list[float] = []
        for repeat in range(options.repeats):
            for size, model in models.items():
                # Turn about, so that none always runs on the machine that another left behind.
                for way in ways if repeat % 2 == 0 else reversed(ways):
                    tell(f"repeat {repeat + 1}/{options.repeats}: {size}, {WAYS[way].title}")
                    require_quiet(options.under_load or options.quick)
                    took, of_others = measure(way, model, options.updates)
                    seconds[size][way] += took
                    others.append(of_others)
    print(report(seconds, megabytes, options.repeats, options.updates))
    print(f"\n{sentence(others)}")
    if not options.quick:
        found = {"command": command("weight_sync"), "machine": machine(1), "versions": versions(*PACKAGES)}
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({**found, "megabytes": megabytes, "others": others, "seconds": seconds}, indent=1)
        (RESULTS / "weight-sync.json").write_text(text + "\n")


def possible(ways: list[str]) -> list[str]:
    """Those that can be measured in this environment; says what the others need."""
    without = {
        "sglang": "SGLang is not measured: it cannot be imported here. `bash scripts/test-sglang.sh` makes an environment "
        "with it; run this with its interpreter, .cache/sglang-venv/bin/python.",
        "ray": "Ray is not measured: it cannot be imported here (pip install 'slime-core[ray]').",
    }
    needed = {"sglang": ("sglang", "sglang_router"), "ray": ("ray",)}
    for kind, modules in needed.items():
        if not all(map(importlib.util.find_spec, modules)) and any(way.startswith(kind) for way in ways):
            print(without[kind], flush=True)
            ways = [way for way in ways if not way.startswith(kind)]
    return ways


def measure(way: str, model: Path, updates: int) -> tuple[list[float], float]:
    """Seconds of all updates but the first, in a process of its own, and the share of the processors that others used meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--worker", way, str(model), str(updates), folder]
        others = run_together([[sys.executable, "-m", "benchmarks.weight_sync", *words]])
        return json.loads(Path(folder, "result.json").read_text()), others


def _model(size: str, scratch: Path) -> Path:
    if size == SIZES[-1]:
        return prepared("model")
    width, layers = {"tiny": (32, 2), "small": (256, 8)}[size]
    return random_model(scratch / size, width, layers)


def megabytes_of(model: Path) -> float:
    """Of all weights in fp32, tied ones once."""
    return sum(tensor.nbytes for tensor in _weights(model, "meta")) / 1e6


def _weights(model: Path, device: str) -> list[Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device(device):
        return list(
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.float32).parameters()
        )


# ------------------------------------------------------------------------------------------------------- in the worker


def hand_over(flags: Sequence[str], model: Path, updates: int, folder: Path) -> list[float]:
    """Hand the weights of a run's trainer to its engine, again and again."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins
    from slime_core.run.console import Console
    from slime_core.run.plan import make_plan
    from slime_core.run.start import start_workers
    from slime_core.run.weight_sync import WeightSync
    from slime_core.runtime.handles import wait
    from slime_core.training.worker import TrainWorker

    rows = folder / "rows.jsonl"
    rows.write_text('{"input": "hello"}\n')
    words = ["--hf-checkpoint", str(model), "--prompt-data", str(rows), "--run-dir", str(folder / "run"), *flags]
    words += ["--num-rollout", "1", "--rollout-batch-size", "1", "--rm-type", "random"]
    plugins = Plugins()
    plan = make_plan(resolve(Namespace(plugins), words), plugins)
    run_dir = Path(plan.args.run_dir)
    run_dir.mkdir()
    console = Console(0)
    workers = start_workers(plan, run_dir, None, console)
    try:
        trainer = workers.trainer
        assert trainer is not None
        wait(trainer.call(TrainWorker.setup), "the model to load")
        sync = WeightSync(plan.args, plugins, workers.rollouts, trainer, takes_turns=False)
        return timed(sync.update, updates)
    finally:
        workers.close()
        console.close()


def copy(flags: Sequence[str], model: Path, updates: int, folder: Path) -> list[float]:
    """Copy tensors of the model's shapes to tensors that are there."""
    import torch

    source = _weights(model, "cpu")
    target = [torch.empty_like(tensor) for tensor in source]

    def update(version: int) -> None:
        with torch.no_grad():
            for old, new in zip(target, source, strict=True):
                old.copy_(new)

    return timed(update, updates)


def timed(update: Callable[[int], None], updates: int) -> list[float]:
    """Seconds of each call but the first."""
    seconds = []
    for version in range(updates):
        started = time.perf_counter()
        update(version)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def report(seconds: dict[str, dict[str, list[float]]], megabytes: dict[str, float], repeats: int, updates: int) -> str:
    """The measurements as Markdown."""
    lines = [
        "# Weights on their way to the engine",
        "",
        f"`{command('weight_sync')}`",
        "",
        f"fp32, {os.cpu_count()} cores, one thread per process, {platform.machine()}. Median (lowest to highest) of "
        f"{updates - 1} updates in each of {repeats} processes; the first update of each is left out.",
        "",
        "| model | MB | way | ms | MB/s |",
        "|---|---|---|---|---|",
    ]
    for size, ways in seconds.items():
        for way, found in ways.items():
            cells = [spread([1000 * s for s in found], "", 1), spread([megabytes[size] / s for s in found], "", 0)]
            lines.append(f"| {size} | {megabytes[size]:.1f} | {WAYS[way].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
