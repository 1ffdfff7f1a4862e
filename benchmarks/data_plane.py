"""What tokens cost between the engine's answer and the model's input: `python -m benchmarks.data_plane`, about three minutes on one core and 4 GiB. Writes
benchmarks/results/data-plane.json.

A rollout of half a million tokens to 64 million goes through the core as in a GRPO run, without engine and model, stage by stage: nanoseconds
and bytes per token, each size in a process of its own. Flat columns are the aim: no stage may grow faster than the tokens. Seconds are those of the processor, so that other
processes only disturb the figures by taking its caches and its memory's bandwidth.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.processes import ROOT, measured_environment
from benchmarks.quiet import beside_others, sentence
from benchmarks.report import command, keep, machine, tell
from slime_core.contracts.train_backend import TrainBatch
from slime_core.rollout.result import raw_rewards
from slime_core.run.checkpoints import load_state
from slime_core.run.saving import Saving
from slime_core.run.state_samples import SAMPLES, without_samples
from slime_core.sample import Group, Sample, Status, check_rollout, number_groups
from slime_core.start_up import collect_again, collect_seldom
from slime_core.tensors.micro_batches import pack_micro_batch, response_values
from slime_core.tensors.ranks import Ranks
from slime_core.token_arrays import num_trained
from slime_core.training.batches import make_train_batch
from slime_core.training.signals import Column, advantage_inputs, columns_of
from slime_core.training.steps import Steps
from slime_core.trajectories import gather_trajectories
from slime_losses.advantages.grpo import grpo
from slime_rollout_sglang.metrics import response_metrics
from slime_rollout_sglang.staleness import oldest_version

MILLION = 1_000_000
SIZES = (0.5, 2.0, 8.0, 32.0, 64.0)
"""Millions of tokens of a rollout."""
PROMPT, GROUP = 512, 8
"""Tokens of a prompt, and samples of each."""
VOCABULARY, BUDGET = 151_936, 16_384
GOAL_NS, GOAL_BYTES, GOAL_STORED_NS = 80, 24, 200
TOUCHED = 64
"""Bytes for each token that are touched beforehand: more than are used."""
CHECKPOINT, RESUME = "write a checkpoint", "resume from it"


@dataclass
class Rollout:
    """A rollout on its way.

    Attributes:
        tokens: how many it shall have, at least.
        longest: response tokens that a sample may have; they have half as many on average.
        groups, columns, batch, sent, stored: what the stages have made of it so far.
        folder: of its checkpoint; it goes with the rollout.
    """

    tokens: int
    longest: int
    groups: list[Group] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)
    batch: TrainBatch | None = None
    sent: list[Group] = field(default_factory=list)
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    stored: Path = Path()

    @property
    def samples(self) -> list[Sample]:
        """All of them, group after group."""
        return [sample for group in self.groups for sample in group]

    @property
    def made(self) -> TrainBatch:
        """The batch, which the stage `batch` has made."""
        if self.batch is None:
            raise RuntimeError("the stage `batch` comes first")
        return self.batch


def answers(rollout: Rollout) -> Iterator[Group]:
    """The groups, as lists of Python numbers, as engines and generate functions leave them."""
    random.seed(1)
    left = rollout.tokens
    number = 0
    while left > 0:
        prompt = random.choices(range(VOCABULARY), k=PROMPT)
        group = []
        for _ in range(GROUP):
            length = random.randint(1, rollout.longest)
            ids = torch.randint(VOCABULARY, (length,)).tolist()
            log_probs = (-torch.rand(length)).tolist()
            group.append(
                Sample(
                    index=number,
                    tokens=[*prompt, *ids],
                    response_length=length,
                    loss_mask=(torch.rand(length) < 0.9).int().tolist(),
                    rollout_log_probs=log_probs,
                    weight_versions=[3] * length,
                    reward=float(number % 3 == 0),
                    status=Status.COMPLETED,
                )
            )
            number += 1
            left -= PROMPT + length
        yield group


def take(rollout: Rollout) -> float:
    """The answers become the rollout's: what is done with the result of a generate function. Seconds, without the answers' own."""
    seconds = 0.0
    for group in answers(rollout):
        started = time.process_time()
        for sample in group:
            sample.make_plain(handed_over=True)
        seconds += time.process_time() - started
        rollout.groups.append(group)
    return seconds


def check(rollout: Rollout) -> None:
    """What is done with the result of a rollout function, and its metrics."""
    for sample in rollout.samples:
        sample.make_plain(handed_over=True)
    check_rollout(rollout.groups, need_reward=True)
    number_groups(rollout.groups)
    gather_trajectories(rollout.groups)
    response_metrics(rollout.samples)
    oldest_version(rollout.samples)
    raw_rewards(rollout.samples, SimpleNamespace(disable_compute_advantages_and_returns=False, reward_key=None))  # type: ignore[arg-type]  # these two are read


def send(rollout: Rollout) -> None:
    """To another process: pickled as Ray does it, with arrays out of band, and read again."""
    buffers: list[Any] = []
    stored = pickle.dumps(rollout.groups, protocol=5, buffer_callback=buffers.append)
    rollout.sent = pickle.loads(stored, buffers=buffers)


def signals(rollout: Rollout) -> None:
    """Advantages, and the columns of the loss."""
    samples = rollout.samples
    args: Any = SimpleNamespace(
        disable_rewards_normalization=False, disable_grpo_std_normalization=False, normalize_advantages=False
    )
    rollout.columns = {"rollout_log_probs": [vars(sample)["rollout_log_probs"] for sample in samples]}
    rewards = [float(sample.reward or 0) for sample in samples]  # type: ignore[arg-type]  # they are numbers
    made = grpo(args, advantage_inputs(rollout.groups, rewards, False, rollout.columns))
    rollout.columns |= columns_of(made, samples)


def batch(rollout: Rollout) -> None:
    """The batch of one optimizer step, packed into micro-batches; samples without gradient are left out."""
    args: Any = SimpleNamespace()
    skipped = Steps(args, has_advantages=True, may_skip=True).without_gradient(rollout.samples, rollout.columns)
    rollout.batch = make_train_batch(
        rollout.samples, max_tokens=BUDGET, columns=rollout.columns, skipped=skipped, ranks=8, balance=True
    )
    if not rollout.batch.num_trained_tokens < rollout.batch.num_tokens:
        raise RuntimeError("some tokens are masked")


def pack(rollout: Rollout) -> None:
    """The model's input: the packed rows of all micro-batches, one after the other."""
    for micro_batch in rollout.made.micro_batches:
        pack_micro_batch(rollout.made, micro_batch, vocab_size=VOCABULARY)


def log_probs(rollout: Rollout) -> float:
    """The model's log-probs become a column. Seconds, without the model's own."""
    samples, ranks = rollout.samples, Ranks.join(1.0)
    found = [(own, -torch.rand(sum(num_trained(samples[i]) for i in own))) for own in rollout.made.micro_batches]
    started = time.process_time()
    rollout.columns["old_log_probs"] = response_values(rollout.made, found, ranks)
    return time.process_time() - started


def checkpoint(rollout: Rollout) -> None:
    """A checkpoint in which the rollout waits: flushed to disk, with the digests of its files."""
    plain, packed = without_samples({"groups": rollout.groups})
    with Saving(Path(rollout.folder.name), 0) as saving:
        rollout.stored = saving.finish(plain, samples=packed)


def resume(rollout: Rollout) -> None:
    """The checkpoint is verified and read."""
    load_state(rollout.stored)


STAGES: list[tuple[str, Callable[[Rollout], float | None]]] = [
    ("take over", take),
    ("check, number, metrics", check),
    ("send to another process", send),
    ("advantages", signals),
    ("batch", batch),
    ("packed rows", pack),
    ("log-probs", log_probs),
    (CHECKPOINT, checkpoint),
    (RESUME, resume),
]
"""What a rollout goes through, by name. A stage that returns seconds has set the others aside."""
BEYOND = (CHECKPOINT, RESUME)
"""Names of stages that are not between the engine's answer and the model's input, such as what is stored."""


def one(tokens: int, longest: int) -> dict[str, Any]:
    """Send a rollout through all stages, and return their seconds, tokens and memory."""
    torch.set_num_threads(1)
    warm = Rollout(20_000, longest)
    for _, stage in STAGES:
        stage(warm)
    warm.folder.cleanup()
    del warm
    collect_seldom()
    collect_again()  # as when a run begins
    touch(TOUCHED * tokens)
    rollout = Rollout(tokens, longest)
    found: dict[str, float] = {}
    before = resident()
    for name, stage in STAGES:
        started = time.process_time()
        own = stage(rollout)
        found[name] = time.process_time() - started if own is None else own
        rollout.sent = []
    sizes = {
        "tokens": rollout.made.num_tokens,
        "samples": len(rollout.samples),
        "stored": (rollout.stored / SAMPLES).stat().st_size,
    }
    most, with_rollout = peak() - before, resident()
    del rollout
    return {**sizes, "seconds": found, "held": with_rollout - resident(), "peak": most}


def resident() -> int:
    """Bytes of this process in memory, without those that the C library has kept for what is allocated next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def touch(size: int) -> None:
    """Use so many bytes of memory and give them back: a virtual machine is only then given memory that nothing on it has used before, which takes
    longer than all that is measured here. What this process has had at most counts from here on."""
    used = torch.ones(size, dtype=torch.uint8)
    del used
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes that this process has had in memory since `touch`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def in_process(tokens: float, longest: int) -> dict[str, Any]:
    """`one`, in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.data_plane", "--one", str(tokens), "--longest", str(longest)]
    done = subprocess.run(words, cwd=ROOT, env=measured_environment(1), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: dict[float, list[dict[str, Any]]]) -> str:
    """The medians as Markdown: nanoseconds per token of each stage, by the size of the rollout, and bytes."""
    sizes = list(runs)
    lines = [
        "| ns per token | " + " | ".join(f"{size:g} M tokens" for size in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]

    def line(name: str, value: Callable[[dict[str, Any]], float], digits: int = 1) -> None:
        cells = [f"{median(map(value, runs[size])):.{digits}f}" for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for name, _ in STAGES:
        line(name, lambda run, name=name: run["seconds"][name] / run["tokens"] * 1e9)  # type: ignore[misc]  # of this round
    line(f"**answer to model's input** (goal: {GOAL_NS})", per_token)
    line(f"bytes per token, held (goal: {GOAL_BYTES})", lambda run: run["held"] / run["tokens"])
    line(f"**with the checkpoint** (goal: {GOAL_STORED_NS})", lambda run: per_token(run) + in_checkpoint(run))
    line("bytes per token, on disk", lambda run: run["stored"] / run["tokens"])
    line("bytes per token, at most", lambda run: run["peak"] / run["tokens"])
    line("samples", lambda run: run["samples"], 0)
    return "\n".join(lines)


def per_token(run: dict[str, Any]) -> float:
    """Nanoseconds between the engine's answer and the model's input."""
    return float(sum(seconds for name, seconds in run["seconds"].items() if name not in BEYOND) / run["tokens"] * 1e9)


def in_checkpoint(run: dict[str, Any]) -> float:
    """Nanoseconds to write a token into a checkpoint."""
    return float(run["seconds"][CHECKPOINT] / run["tokens"] * 1e9)


def growth(runs: dict[float, list[dict[str, Any]]]) -> list[float]:
    """By what power of the tokens the time grows from each size to the next: 1 is linear."""
    from math import log

    times = {size: median(per_token(run) * run["tokens"] for run in own) for size, own in runs.items()}
    return [log(times[b] / times[a]) / log(b / a) for a, b in pairwise(times)]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="millions of tokens of the rollouts")
    parser.add_argument(
        "--longest", type=int, default=16_384, help="tokens of the longest response; the mean is half as many"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(round(options.one * MILLION), options.longest)))
        return
    if options.repeats < 1 or options.longest < 1 or not all(size > 0 for size in options.sizes):
        parser.error("--sizes, --longest and --repeats must be above 0")
    runs: dict[float, list[dict[str, Any]]] = {}
    load, others = os.getloadavg()[0], []
    for size in options.sizes:
        tell(f"{size:g} million tokens …")
        runs[size], share = beside_others(
            lambda size=size: [in_process(size, options.longest) for _ in range(options.repeats)]  # type: ignore[misc]  # of this round
        )
        others.append(share)
    found = table(runs)
    if len(runs) > 1:
        found += (
            f"\n\nTime grows with the tokens to the power of {', '.join(f'{power:.2f}' for power in growth(runs))}."
        )
    print(f"`{command('data_plane')}`: {machine(1)}\n\n{found}\n\n{sentence(others)}")
    kept = {f"{size:g}": own for size, own in runs.items()}
    keep("data-plane", command("data_plane"), [found], load, runs=kept, others=others)


if __name__ == "__main__":
    main()
