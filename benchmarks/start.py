"""How long commands take until they have something to say: `python -m benchmarks.start`, a minute on a quiet CPU.

Each in a process of its own, in turn: `slime --help`, `slime check recipes/quickstart-sft.yaml`, `slime train` of that recipe to the end
of its first step, of one conversation, and beside them the imports alone that the last two cannot do without (torch, and the configuration, tokenizer and
model classes of transformers). Prints seconds, and writes them with the shares that slime adds to benchmarks/results.
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

from benchmarks.processes import ROOT, measured_environment, prepared
from benchmarks.quiet import add_option, beside_others, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

RECIPE = "recipes/quickstart-sft.yaml"
GOALS = {"slime --help": 0.4, "slime check": 3.0, "slime train, first step": 6.0}
IMPORTS = "imports alone"
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
        "slime check": lambda: seconds([*slime, "check", RECIPE]),
        "slime train, first step": first_step,
    }
    found: dict[str, list[float]] = {name: [] for name in contestants}
    others: dict[str, list[float]] = {name: [] for name in contestants}
    load = os.getloadavg()[0]
    for repeat in range(options.repeats):
        require_quiet(options.under_load)
        for name, run in contestants.items():
            took, of_others = beside_others(run)
            found[name].append(took)
            others[name].append(of_others)
            tell(f"repeat {repeat + 1}/{options.repeats}: {name}: {took:.2f} s, others {100 * of_others:.0f} %")
    print(report(found, others))
    RESULTS.mkdir(exist_ok=True)
    about = {"command": command("start"), "machine": machine(os.cpu_count() or 1)}
    about |= {"versions": versions("slime-core", "torch", "transformers"), "load_before": load, "others": others}
    (RESULTS / "start.json").write_text(json.dumps({**about, "seconds": found}, indent=1) + "\n")


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


def report(found: dict[str, list[float]], others: dict[str, list[float]]) -> str:
    """The measurements as Markdown."""
    lines = ["| | seconds | goal |", "|---|---|---|"]
    for name, values in found.items():
        lines.append(f"| {name} | {spread(values, '', 2)} | {GOALS.get(name, '—')} |")
    shares = [share for own in others.values() for share in own]
    lines += ["", f"Median (lowest to highest) of {len(found[IMPORTS])}. {sentence(shares)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
