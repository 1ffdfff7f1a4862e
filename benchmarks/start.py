"""How long commands take until they have something to say: `python -m benchmarks.start`, a minute on a quiet CPU.

Each in a process of its own, in turn: `slime --help`, `slime check recipes/quickstart-sft.yaml`, the first of a model and a later one
(`slime_core.training.model_facts`), `slime train` of that recipe to the end of its first step, of one conversation, and beside them
the imports alone that training cannot do without (torch, and the configuration, tokenizer and model classes of transformers). Then
`slime train` phase by phase (`benchmarks.start_phases`). Prints seconds, and writes them to benchmarks/results with the shares that
the imports alone have in them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, measured_environment, prepared
from benchmarks.quiet import add_option, beside_others, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

RECIPE = "recipes/quickstart-sft.yaml"
FIRST, CHECK, TRAIN = "slime check, the first of a model", "slime check", "slime train, first step"
GOALS = {"slime --help": 0.4, CHECK: 3.0, TRAIN: 6.0}
IMPORTS = "imports alone"
Phases = dict[str, list[float]]
"""A phase → seconds, and seconds of processor time."""
ONE_ROW = ("--rollout-batch-size", "1", "--global-batch-size", "1", "--skip-eval-before-train")
"""Of the recipe's steps, which have eight conversations, so much that the step itself counts little."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    add_option(parser)
    options = parser.parse_args()
    model = prepared("model")
    subprocess.run([sys.executable, ROOT / "scripts" / "tool_calls.py"], check=True, stdout=subprocess.DEVNULL)
    imports = (
        "from transformers import AutoConfig, AutoTokenizer, PreTrainedModel; "
        f"AutoConfig.from_pretrained({str(model)!r}); AutoTokenizer.from_pretrained({str(model)!r})"
    )
    slime = [sys.executable, "-m", "slime_core"]
    contestants: dict[str, Callable[[], float]] = {
        "slime --help": lambda: seconds([*slime, "--help"]),
        IMPORTS: lambda: seconds([sys.executable, "-c", imports]),
        FIRST: lambda: seconds([*slime, "check", RECIPE]),
        CHECK: lambda: seconds([*slime, "check", RECIPE]),
        TRAIN: first_step,
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    others: dict[str, list[float]] = {name: [] for name in contestants}
    phases: list[Phases] = []
    seconds([*slime, "check", RECIPE])  # Python keeps the bytecode of what it imports
    load = os.getloadavg()[0]
    for repeat in range(options.repeats):
        require_quiet(options.under_load)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["SLIME_CACHE"] = cache  # in which nothing is kept yet
            for name, run in contestants.items():
                took, of_others = beside_others(run)
                found[name].append(took)
                others[name].append(of_others)
                tell(f"repeat {repeat + 1}/{options.repeats}: {name}: {took:.2f} s, others {100 * of_others:.0f} %")
            phases.append(first_step_in_phases())
    print(report(found, others, phases))
    RESULTS.mkdir(exist_ok=True)
    about: dict[str, Any] = {"command": command("start"), "machine": machine(os.cpu_count() or 1)}
    about |= {"versions": versions("slime-core", "torch", "transformers"), "load_before": load, "others": others}
    shares = {name: [a / b for a, b in zip(found[IMPORTS], found[name], strict=True)] for name in (FIRST, CHECK, TRAIN)}
    results = {"seconds": found, "imports_alone_divided_by": shares, "phases": phases}
    (RESULTS / "start.json").write_text(json.dumps({**about, **results}, indent=1) + "\n")


def seconds(words: list[str]) -> float:
    """How long a command takes."""
    started = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, env=measured_environment(), stdout=-1, stderr=-2, text=True)
    took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(words[1:])} failed:\n{done.stdout[-2000:]}")
    return took


def first_step() -> float:
    """Seconds from the start of `slime train` to the end of its first optimizer step. The run is ended then."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "slime_core", "train", RECIPE, "--run-dir", scratch, *ONE_ROW]
        started = time.time()
        process = subprocess.Popen(words, cwd=ROOT, env=measured_environment(), stdout=-3, stderr=-3)
        try:
            metrics = Path(scratch) / "metrics.jsonl"
            while process.poll() is None:
                for line in metrics.read_text().splitlines() if metrics.exists() else []:
                    if "train/loss" in (row := json.loads(line)):
                        return float(row["time"]) - started
                time.sleep(0.02)
            raise SystemExit(f"slime train {RECIPE} ended before its first step; try it by hand.")
        finally:
            process.terminate()
            process.wait()


def first_step_in_phases() -> Phases:
    """The same, phase by phase."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["-m", "benchmarks.start_phases", repr(time.time()), "train", RECIPE, "--run-dir", scratch, *ONE_ROW]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=measured_environment(), stdout=-1, stderr=-3)
        found: Phases = json.loads(done.stdout.splitlines()[-1])
        return found


def report(found: dict[str, list[float]], others: dict[str, list[float]], phases: list[Phases]) -> str:
    """The measurements as Markdown."""
    lines = ["| | seconds | goal |", "|---|---|---|"]
    for name, values in found.items():
        lines.append(f"| {name} | {spread(values, '', 2)} | {GOALS.get(name, '—')} |")
    lines += ["", f"| phases of {TRAIN} | seconds | processor time |", "|---|---|---|"]
    for phase in phases[0]:
        wall, used = ([one[phase][number] for one in phases] for number in (0, 1))
        lines.append(f"| {phase} | {spread(wall, '', 2)} | {spread(used, '', 2)} |")
    shares = [share for own in others.values() for share in own]
    lines += ["", f"Median (lowest to highest) of {len(found[IMPORTS])}. {sentence(shares)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
