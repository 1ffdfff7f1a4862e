"""Does fine-tuning in FP8 follow fine-tuning in fp32? `python -m benchmarks.fp8_sft`, on two CPU cores in about two hours.

Fine-tunes SmolLM2-135M-Instruct on short rows of real conversations for 200 steps, in fp32 and by each precision recipe in emulation
(`--fp8-format e4m3`), over several seeds, which decide the order of the conversations. Runs of one seed train on the same rows in the
same order, so their losses are compared step by step; what the seeds differ by in fp32 is the noise that a difference is held against.

Prints, and writes to benchmarks/results, for each recipe: the largest relative difference from fp32 of the training loss, as means
over 20 steps, and of the loss on 16 held-out conversations, which is measured every 50 steps; and beside them what fp32 differs by
between the seeds. With `--folder DIR` run directories stay there, and runs that are complete are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean

from benchmarks.fp8 import RECIPES
from benchmarks.processes import measured_environment, prepared, run_process, unwind_on_signals
from benchmarks.report import RESULTS, machine, tell, versions
from slime_core.run.tracking import read_metrics

FP32 = "fp32"
WINDOW, EVERY = 20, 50
PACKAGES = ("slime-core", "slime-fp8", "slime-torch", "torch", "transformers")


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        losses: of training, step by step.
        held_out: before training and after every 50 steps.
    """

    recipe: str
    seed: int
    losses: list[float]
    held_out: list[float]

    def windows(self) -> list[float]:
        """Means of the training loss over 20 steps each."""
        return [mean(self.losses[start : start + WINDOW]) for start in range(0, len(self.losses), WINDOW)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument(
        "--folder", type=Path, help="keep run directories here, and do not repeat those that are complete"
    )
    given = parser.parse_args()
    unwind_on_signals()
    data = prepared("data")
    with tempfile.TemporaryDirectory() as scratch:
        curves = [
            curve(given.folder or Path(scratch), data, prepared("model"), recipe, seed, given.steps)
            for seed in given.seeds
            for recipe in (FP32, *given.recipes)
        ]
    print(report(curves))
    found = {"machine": machine(1), "versions": versions(*PACKAGES), "steps": given.steps}
    found["runs"] = [asdict(one) for one in curves]
    (RESULTS / "fp8-sft-cpu.json").write_text(json.dumps(found) + "\n")


def curve(folder: Path, data: Path, model: Path, recipe: str, seed: int, steps: int) -> Curve:
    """Run, unless its run directory is complete, and read what came of it."""
    directory = folder / f"{recipe}-{seed}"
    found = _read(directory, recipe, seed) if directory.exists() else None
    if found is None or len(found.losses) < steps:
        tell(f"seed {seed}: {recipe}")
        run_process(words(directory, data, model, recipe, seed, steps), measured_environment(1))
        found = _read(directory, recipe, seed)
    return found


def words(directory: Path, data: Path, model: Path, recipe: str, seed: int, steps: int) -> list[str]:
    """The command line of a run: two conversations of at most 64 tokens a step."""
    flags = {
        "--hf-checkpoint": model,
        "--prompt-data": data / "alpaca_train.jsonl",
        "--eval-interval": EVERY,
        "--num-rollout": steps,
        "--seed": seed,
        "--rollout-seed": seed,
        "--run-dir": directory,
    }
    switches = (
        "--rollout-function-path sft --loss-type sft_loss --input-key messages --rollout-shuffle --calculate-per-token-loss "
        "--disable-compute-advantages-and-returns --rollout-batch-size 2 --global-batch-size 2 --use-dynamic-batch-size "
        "--max-tokens-per-gpu 4096 --rollout-max-context-len 64 --over-long-sample truncate --no-trainable-token skip "
        "--optimizer adam --lr 2e-5 --lr-decay-style constant"
    )
    low = ["--fp8-format", "e4m3", "--fp8-recipe", recipe, "--fp8-emulation"] if recipe != FP32 else []
    held_out = ["--eval-prompt-data", "heldout", f"{data / 'alpaca_heldout.jsonl'}@[0:16]"]
    given = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-m", "slime_core", "train", *given, *switches.split(), *held_out, *low]


def _read(directory: Path, recipe: str, seed: int) -> Curve:
    lines = read_metrics(directory / "metrics.jsonl")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    held_out = [line["eval/heldout/loss"] for line in lines if "eval/heldout/loss" in line]
    return Curve(recipe, seed, losses, held_out)


def report(curves: list[Curve]) -> str:
    """The comparison as Markdown."""
    high = {one.seed: one for one in curves if one.recipe == FP32}
    lines = [
        f"{len(high)} seeds, {len(curves[0].losses)} steps. Largest relative differences from fp32 of the same seed.",
        "",
        f"| recipe | training loss, means over {WINDOW} steps | held-out loss | held-out loss before training | at the end, each seed |",
        "|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(one.recipe for one in curves if one.recipe != FP32):
        pairs = [(one, high[one.seed]) for one in curves if one.recipe == recipe]
        training = max(furthest(one.windows(), other.windows()) for one, other in pairs)
        held_out = max(furthest(one.held_out, other.held_out) for one, other in pairs)
        before = pairs[0][0].held_out[0] / pairs[0][1].held_out[0] - 1
        lines.append(
            f"| {recipe} | {100 * training:.2f} % | {100 * held_out:.2f} % | {100 * before:+.2f} % | {ends(pairs)} |"
        )
    between = list(combinations(high.values(), 2))
    if between:
        training = max(furthest(one.windows(), other.windows()) for one, other in between)
        held_out = max(furthest(one.held_out, other.held_out) for one, other in between)
        lines.append(f"| fp32, between seeds | {100 * training:.2f} % | {100 * held_out:.2f} % | 0 | {ends(between)} |")
    return "\n".join(lines)


def ends(pairs: Sequence[tuple[Curve, Curve]]) -> str:
    """How much higher the held-out loss of the first of each pair is at its end."""
    return ", ".join(f"{100 * (one.held_out[-1] / other.held_out[-1] - 1):+.2f} %" for one, other in pairs)


def furthest(some: list[float], others: list[float]) -> float:
    """The largest relative difference of two curves, point by point."""
    return max(abs(a - b) / abs(b) for a, b in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
