"""How times grow with the tokens of a rollout, its samples, and the training ranks: `python -m benchmarks.growth`, about four minutes on one core
and 4 GiB. Writes benchmarks/results/growth.json.

Rollouts of half a million tokens to 64 million, and 1 to 64 ranks that are only counted: dumps, checkpoints with a buffer, what resumes from them,
micro-batches (with prompts of their own and shared ones), `slime check` and `slime report`; and whole rollouts of 512 to 16,384 short samples, made
and trained with a tiny model, where what is done once for a sample is all there is. Prints the seconds of each by size, and the
power of the size by which they grow, fitted over the larger half: 1 is linear, and above 1.15 something grows faster than what it works on. Ends
with status 1 then. `benchmarks.data_plane` has the stages between the engine's answer and the model's input.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import numpy as np

from benchmarks.processes import measured_environment, run_process
from benchmarks.quiet import beside_others, sentence
from benchmarks.report import command, keep, machine, tell
from slime_core.cli import main as slime
from slime_core.data.sample_lines import open_samples
from slime_core.rollout.debug_data import read_debug_data, write_debug_data
from slime_core.run.checkpoints import load_state
from slime_core.run.evaluation import write_answers
from slime_core.run.saving import Saving
from slime_core.run.state_samples import without_samples
from slime_core.sample import RolloutOutput, Sample, Status
from slime_core.start_up import collect_again, collect_seldom
from slime_core.testing.checkpoint import tiny_checkpoint
from slime_core.token_columns import TokenColumn
from slime_core.training.batches import make_train_batch

SIZES = (0.5, 2.0, 8.0, 32.0, 64.0)
"""Millions of tokens of a rollout."""
RANKS = (1, 4, 16, 64)
SAMPLES = (512, 2048, 8192, 16_384)
LONGEST, PROMPT, GROUP = 4096, 512, 8
BUDGET = 16_384
LINEAR = 1.15
"""Powers up to here are linear with what a machine adds to it."""
ANSWERS = 4
"""Millions of tokens of answers that an evaluation has at most: JSON lines are written of them."""


def samples(tokens: int) -> list[Sample]:
    """A finished rollout with groups of eight, whose responses have 1 to 4,096 tokens."""
    chance = np.random.default_rng(1)
    made: list[Sample] = []
    left = tokens
    while left > 0:
        prompt = chance.integers(0, 150_000, PROMPT, dtype=np.int32)
        asked = [{"role": "user", "content": "What is it? " * 100}]
        for _ in range(GROUP):
            length = int(chance.integers(1, LONGEST))
            ids = np.concatenate([prompt, chance.integers(0, 150_000, length, dtype=np.int32)])
            sample = Sample(
                index=len(made), group_index=len(made) // GROUP, prompt="What is it? " * 100, response="Yes. " * length
            )
            sample.reward, sample.status, sample.response_length = float(len(made) % 3 == 0), Status.COMPLETED, length
            sample.note(source=f"rows.jsonl:{len(made)}", asked=asked, dataset="set")
            vars(sample).update(
                tokens=TokenColumn(ids),
                loss_mask=TokenColumn(np.ones(length, np.uint8)),
                rollout_log_probs=TokenColumn(-chance.random(length, dtype=np.float32)),
                weight_versions=TokenColumn(np.zeros(length, np.uint8), (3,)),
            )
            made.append(sample)
            left -= PROMPT + length
    return made


class Work:
    """What is measured of one rollout. Every method but the first is an item, and is told the folder that the ones before it wrote into."""

    def __init__(self, tokens: int, folder: Path, model: Path) -> None:
        self.folder, self._model, self._tokens = folder, model, tokens
        self.samples = samples(tokens)
        self._groups = [self.samples[place : place + GROUP] for place in range(0, len(self.samples), GROUP)]

    def write_dump(self) -> None:
        """--save-debug-rollout-data"""
        write_debug_data(self.folder / "dump", RolloutOutput(self._groups, {}))

    def read_dump(self) -> None:
        """--load-debug-rollout-data"""
        read_debug_data(self.folder / "dump")

    def first_samples(self) -> None:
        """slime samples DUMP --limit 10, for which the size does not matter"""
        for _ in zip(range(10), open_samples(self.folder / "dump").read(), strict=False):
            pass

    def write_checkpoint(self) -> None:
        """a checkpoint with all samples in its buffer, flushed to disk"""
        with Saving(self.folder, 0) as saving:
            plain, packed = without_samples({"data_source": {"buffer": self._groups}})
            saving.finish(plain, samples=packed)

    def resume(self) -> None:
        """the state of this checkpoint, verified and read"""
        load_state(self.folder / "iter_0000000")

    def batch(self) -> None:
        """micro-batches of 16,384 tokens for 8 ranks, balanced"""
        make_train_batch(self.samples, max_tokens=BUDGET, ranks=8, balance=True)

    def batch_with_shared_prompts(self) -> None:
        """the same with prompts that are computed once"""
        make_train_batch(self.samples, max_tokens=BUDGET, ranks=8, balance=True, share_prompts=True)

    def check(self) -> None:
        """slime check of a run with so many rows"""
        rows = self.folder / "rows.jsonl"
        row = {
            "messages": [
                {"role": "user", "content": "What is it?"},
                {"role": "assistant", "content": "Yes. " * LONGEST},
            ]
        }
        count = max(1, self._tokens // LONGEST)
        if not rows.exists():
            rows.write_text((json.dumps(row) + "\n") * count)
        words = ["--hf-checkpoint", str(self._model), "--prompt-data", str(rows), "--input-key", "messages"]
        words += ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"]
        words += [
            "--rollout-batch-size",
            str(count),
            "--num-rollout",
            "1",
            "--lr",
            "1e-3",
            "--run-dir",
            str(self.folder / "run"),
        ]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if slime(["check", *words]) not in (0, 1):  # it may have warnings
                raise RuntimeError(said.getvalue())

    def answers(self) -> None:
        """the answers of an evaluation, as JSON lines: at most four million tokens"""
        number = round(len(self.samples) * min(1.0, ANSWERS * 1e6 / self._tokens))
        write_answers(self.folder / "reported" / "eval" / "rollout_0000000.jsonl", self.samples[:number])

    def report(self) -> None:
        """slime report of a run with this evaluation"""
        run = self.folder / "reported"
        (run / "metrics.jsonl").write_text('{"rollout_id": 0, "time": 1.0, "train/loss": 1.0}\n')
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if slime(["report", str(run)]):
                raise RuntimeError(said.getvalue())

    def for_ranks(self, ranks: int) -> None:
        """the batch of a rollout, and what each of so many ranks computes of it"""
        batch = make_train_batch(self.samples, max_tokens=BUDGET, ranks=ranks, balance=True, share_prompts=True)
        if sum(len(batch.of_rank(rank, ranks)) for rank in range(ranks)) != len(batch.micro_batches):
            raise RuntimeError("a micro-batch has no rank")


ITEMS = {
    "write a dump": Work.write_dump,
    "read a dump": Work.read_dump,
    "show ten samples": Work.first_samples,
    "write a checkpoint": Work.write_checkpoint,
    "resume": Work.resume,
    "micro-batches": Work.batch,
    "with shared prompts": Work.batch_with_shared_prompts,
    "slime check": Work.check,
    "write answers, JSON": Work.answers,
    "slime report": Work.report,
}
"""What is measured, in this order."""


def seconds(work: Callable[[], None], repeats: int) -> float:
    """The least of the processor's seconds: other programs of the machine, and memory that a virtual one has not been given yet, only add."""
    found = []
    for _ in range(repeats):
        gc.collect()
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def power(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The power of the size by which the time grows: the slope of a line through the logarithms, by least squares. Over the larger half of the
    sizes, where what a thing takes at any size counts least."""
    larger = min(len(sizes) // 2, len(sizes) - 2)
    xs, ys = [log(size) for size in sizes[larger:]], [log(time) for time in times[larger:]]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


def measured(sizes: Sequence[float], repeats: int, items: Sequence[str]) -> dict[str, list[float]]:
    """The seconds of every item, by size."""
    found: dict[str, list[float]] = {name: [] for name in items}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        tiny_checkpoint(model)
        warm = Work(20_000, _new(Path(folder), "warm"), model)
        for name in items:
            ITEMS[name](warm)
        collect_seldom()
        collect_again()  # as when a run begins
        for size in sizes:
            tell(f"{size:g} million tokens …")
            work = Work(round(size * 1e6), _new(Path(folder), f"{size:g}"), model)
            for name in items:
                found[name].append(seconds(lambda name=name, work=work: ITEMS[name](work), repeats))  # type: ignore[misc]  # of this round
    return found


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def over_ranks(size: float, repeats: int) -> list[float]:
    """The seconds of a batch by the number of ranks, at one size."""
    work = Work(round(size * 1e6), Path(), Path())
    return [seconds(lambda ranks=ranks: work.for_ranks(ranks), repeats) for ranks in RANKS]  # type: ignore[misc]  # of this round


def over_samples(counts: Sequence[int]) -> dict[str, list[float]]:
    """The seconds of a rollout and of training on it, by the number of samples; the second of two rollouts each."""
    found: dict[str, list[float]] = {"make samples, embedded engine": [], "train on them": []}
    with tempfile.TemporaryDirectory() as scratch:
        model, rows = Path(scratch) / "model", Path(scratch) / "rows.jsonl"
        tiny_checkpoint(model)
        asked = ({"messages": [{"role": "user", "content": f"What is {n}?"}], "label": "1"} for n in range(64))
        rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
        for count in counts:
            tell(f"{count} samples …")
            run = Path(scratch) / str(count)
            flags = {"--hf-checkpoint": model, "--prompt-data": rows, "--input-key": "messages", "--label-key": "label"}
            flags |= {"--rollout-engine": "local", "--rm-type": "exact_match", "--rollout-max-response-len": 8}
            flags |= {"--rollout-batch-size": count // GROUP, "--n-samples-per-prompt": GROUP, "--num-rollout": 2}
            flags |= {"--max-tokens-per-gpu": 4096, "--run-dir": run}
            words = ["--apply-chat-template", "--use-dynamic-batch-size", "--no-skip-zero-advantages"]
            words += [str(word) for flag in flags.items() for word in flag]
            run_process([sys.executable, "-m", "slime_core", "train", *words], measured_environment(1))
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            for name, metric in zip(found, ("perf/generate_time", "perf/train_time"), strict=True):
                found[name].append(last[metric])
    return found


def table(sizes: Sequence[float], found: dict[str, list[float]], unit: str) -> tuple[str, list[str]]:
    """The seconds as Markdown, and the items that grow faster than linearly."""
    head = f"| seconds | {' | '.join(f'{size:g} {unit}' for size in sizes)} | power |"
    lines, faults = [head, "|---" * (len(sizes) + 2) + "|"], []
    for name, times in found.items():
        grows = power(sizes, times)
        lines.append(f"| {name} | {' | '.join(f'{time:.3f}' for time in times)} | {grows:.2f} |")
        if grows > LINEAR:
            faults.append(name)
    return "\n".join(lines), faults


def main() -> int:
    """Measure, and print the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=SIZES, help="millions of tokens of the rollouts, two at least"
    )
    parser.add_argument("--ranks-size", type=float, default=8.0, help="millions of tokens that are spread over ranks")
    parser.add_argument(
        "--samples", type=int, nargs="+", default=SAMPLES, help="samples of the rollouts that are made, in groups of 8"
    )
    parser.add_argument("--items", nargs="+", choices=list(ITEMS), default=list(ITEMS), metavar="ITEM")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if (
        options.repeats < 1
        or options.ranks_size <= 0
        or len(options.sizes) < 2
        or not all(s > 0 for s in options.sizes)
        or len(options.samples) < 2
        or not all(count >= GROUP for count in options.samples)
    ):
        parser.error(
            f"--sizes and --samples need two or more, of samples {GROUP} at least; sizes, --ranks-size and --repeats must be above 0"
        )
    print(f"`{command('growth')}`: {machine(1)}\n")
    load = os.getloadavg()[0]
    seconds_of, others = beside_others(lambda: measured(options.sizes, options.repeats, options.items))
    found, faults = table(options.sizes, seconds_of, "M tokens")
    print(found + "\n")
    ranks, more = table(RANKS, {"a batch for all ranks": over_ranks(options.ranks_size, options.repeats)}, "ranks")
    print(ranks + "\n")
    made, most = table(options.samples, over_samples(options.samples), "samples")
    print(made)
    print(f"\n{sentence([others])}")
    keep("growth", command("growth"), [found, ranks, made], load, others=[others])
    faults += [*more, *most]
    for name in faults:
        print(f"{name} grows faster than linearly")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
