"""Whether a killed run ends like one that was never killed: `python -m benchmarks.kills`, on a CPU.

Real processes of `slime train` and `slime train-async` train a tiny model. Each is killed at a random moment, SIGKILL to it and to
everything that it started, while it loads, generates, trains, evaluates, writes a checkpoint or exports; the same command starts it
again, which is killed too, a few times; and the last one runs to its end. What it leaves behind is compared with what an unbroken run
left: every weight, optimizer and random state, the data source, all metrics but those of the clock, the answers of evaluations, and
the exported model. No difference is the only good result.

Kinds take turns, so that a run that is cut short (`--minutes`, Ctrl-C) has tried all of them. Prints, and writes to
benchmarks/results: kills by what the run was doing, as what it left on disk shows; starts, differences, seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import measured_environment, unwind_on_signals
from benchmarks.report import RESULTS, command, machine, tell, versions
from benchmarks.run_state import differences
from slime_core.run.tracking import read_metrics

PACKAGES = ("slime-core", "torch", "transformers", "ray")
TOKEN = "SLIME_BENCHMARK_KILLS"
"""An environment variable by which everything that a run started is found, also what has left its process group."""
PHASES = ("loading", "rollout or training", "evaluation", "checkpoint", "export")
LIMIT_S, LOOK_S = 300.0, 0.001

COMMON = "--rollout-shuffle --lr 1e-3 --weight-decay 0.1 --save-interval 2 --save-total-limit 3 --input-key messages"
SFT = (
    f"{COMMON} --rollout-function-path sft --loss-type sft_loss --calculate-per-token-loss --disable-compute-advantages-and-returns "
    "--num-epoch 2 --rollout-batch-size 4 --global-batch-size 2 --lr-decay-style cosine --lr-warmup-iters 2 --eval-interval 3"
)
RL = (
    f"{COMMON} --rollout-engine local --apply-chat-template --custom-rm-path benchmarks.kills.even_tokens --rollout-batch-size 3 "
    "--n-samples-per-prompt 3 --rollout-max-response-len 10 --num-rollout 8 --num-steps-per-rollout 3 --eval-interval 3 "
    "--eval-max-response-len 6"
)


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        commands: of slime; each start takes one of them. Their results must be the same.
        flags: of it.
        export: the folder that `--save-hf` names.
        kills: how many, if the command line does not say.
        shows: a metric that is not zero in all rollouts, or else the runs do not do what the kind is about.
    """

    commands: tuple[str, ...]
    flags: str
    export: str = "hf"
    kills: int = 10
    shows: str = ""


KINDS = {
    "sft": Kind(("train", "train-async"), SFT, export="hf-{rollout_id}", kills=100),
    "grpo": Kind(("train",), RL, kills=40),
    "one step off": Kind(("train-async",), RL),
    # Older weights than those that are trained would come and go with the clock: only without them are two runs equal.
    "fully async": Kind(("train-async",), f"{RL} --rollout-function-path fully_async --max-staleness 0"),
    "partial": Kind(
        ("train-async",),
        f"{RL} --partial-rollout --mask-offpolicy-in-partial-rollout --over-sampling-batch-size 5 "
        f"--rollout-max-response-len 24 --rollout-stop {' '.join('abcdefghijklmnopqrstuvwxyz')} "
        "--dynamic-sampling-filter-path benchmarks.kills.in_half_of_the_groups",
        shows="rollout/buffered_tokens_put_back",
    ),
    "lora": Kind(("train", "train-async"), f"{SFT} --lora-rank 4 --lora-dropout 0.1"),
    "early stopping": Kind(
        ("train", "train-async"),
        f"{SFT} --num-epoch 6 --lr 0.1 --lr-decay-style constant --eval-interval 1 --early-stopping-patience 3 "
        "--early-stopping-keep best --save-total-limit 1",
    ),
    "async save": Kind(("train", "train-async"), f"{SFT} --async-save"),
    "two ranks": Kind(("train",), f"{SFT} --ray-address local --actor-num-gpus-per-node 2"),
}


@dataclass
class Tally:
    """What was seen of one kind.

    Attributes:
        hits: kills, by what the run was doing.
        starts: processes, those of the unbroken run not among them.
        runs: compared with the unbroken one.
        differences: found, one phrase each.
        seconds: all of it took.
    """

    hits: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Unbroken:
    """The run that is never killed.

    Attributes:
        folder: what it left.
        loading, gap: seconds to its first line of metrics, and from one line to the next, the median.
        evaluated: rollouts after which it evaluated.
        last: the rollout that it ended with.
        lines: of metrics.
    """

    folder: Path
    loading: float
    gap: float
    haste: list[float] = field(default_factory=lambda: [1.0], kw_only=True)  # less when runs end before they are killed
    evaluated: frozenset[int]
    last: int
    lines: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("--kills", type=int, help="of each kind; by default 100 of sft, 40 of grpo, 10 of the others")
    parser.add_argument("--per-run", type=int, default=4, help="kills before a run may end (4)")
    parser.add_argument("--minutes", type=float, default=120.0, help="after these no further run is begun (120)")
    parser.add_argument("--seed", type=int, help="of the moments; a new one each time if none is given")
    parser.add_argument(
        "--warm", action="store_true", help="fork the processes of kinds without Ray, which saves them all imports"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two kills of each kind, to see that it works; not written"
    )
    parser.add_argument("--keep", type=Path, help="leave the folders of runs that differ here")
    options = parser.parse_args()
    if options.per_run < 1 or (options.kills is not None and options.kills < 1):
        parser.error("--kills and --per-run must be at least 1")
    if options.quick:
        options.kills, options.per_run = options.kills or 2, 2
    unwind_on_signals()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    wanted = {name: options.kills or KINDS[name].kills for name in options.kinds}
    tallies = {name: Tally() for name in wanted}
    try:
        with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
            _run_all(Path(scratch), wanted, tallies, options, random.Random(seed))
    finally:
        print(report(tallies, wanted, seed))
        if not options.quick:
            write({name: tally for name, tally in tallies.items() if tally.runs}, seed)
    if any(tally.differences for tally in tallies.values()):
        raise SystemExit(1)


def _run_all(
    scratch: Path, wanted: dict[str, int], tallies: dict[str, Tally], options: argparse.Namespace, rng: random.Random
) -> None:
    deadline = time.monotonic() + 60 * options.minutes
    work = prepare(scratch, options.warm)
    unbroken: dict[str, Unbroken] = {}
    number = 0
    while open_kinds := [name for name in wanted if tallies[name].hits.total() < wanted[name]]:
        for name in open_kinds:
            if time.monotonic() > deadline:
                return
            tally, started = tallies[name], time.monotonic()
            if name not in unbroken:
                unbroken[name] = run_unbroken(KINDS[name], work, scratch / name.replace(" ", "-"))
            number += 1
            folder = (options.keep or scratch) / f"{name.replace(' ', '-')}-{number}"
            kills = min(options.per_run, wanted[name] - tally.hits.total())
            found = kill_and_compare(KINDS[name], work, folder, unbroken[name], kills, rng, tally)
            tally.seconds += time.monotonic() - started
            tell(f"{name}: {tally.hits.total()} of {wanted[name]} kills, {len(tally.differences)} differences")
            for difference in found:
                tell(f"  {folder.name}: {difference}")
            if not found:
                shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------------------------ one run


@dataclass(frozen=True)
class Work:
    """What all runs train on, a model and rows, and how they are started."""

    model: Path
    rows: Path
    environment: dict[str, str]
    warm: bool = False


def prepare(folder: Path, warm: bool = False) -> Work:
    """Make the model and the rows in a folder that stays as long as the runs do.

    Args:
        warm: see `--warm`.
    """
    from slime_core.testing.checkpoint import tiny_checkpoint

    (folder / "model").mkdir()
    tiny_checkpoint(folder / "model")
    rows = []
    for n in range(20):
        answer = f"It is {2 * n + 1}. " + "Easy. " * (n % 4)
        turns = [("user", f"What is {n} plus {n + 1}?"), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Sockets have short names, so Ray's folder is a short one.
    environment = {**measured_environment(1), "CUDA_VISIBLE_DEVICES": "", "RAY_TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    if warm:
        import_what_runs_need()
    return Work(folder / "model", folder / "rows.jsonl", environment, warm)


class Process:
    """A process of slime, and everything that it starts. None of it outlasts the `with` block.

    Args:
        words: after `slime`.
        said: a file for what it prints.
        warm: fork it from this process, which has imported what it needs.
    """

    def __init__(self, words: list[str], environment: dict[str, str], said: Path, warm: bool = False) -> None:
        self._words, self._said, self._warm = words, said, warm
        self._mark = uuid.uuid4().hex
        self._environment = {**environment, TOKEN: self._mark}

    def __enter__(self) -> Process:
        self.started = time.monotonic()
        own: Any = _Forked(self._words, self._environment, self._said) if self._warm else self._executed()
        self._process: subprocess.Popen[bytes] | _Forked = own
        return self

    def _executed(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "slime_core", *self._words]
        with self._said.open("w") as file:
            return subprocess.Popen(command, env=self._environment, stdout=file, stderr=file, start_new_session=True)

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def status(self) -> int | None:
        return self._process.poll()

    @property
    def last_words(self) -> str:
        return " / ".join(self._said.read_text(errors="replace").splitlines()[-6:])

    def kill(self) -> None:
        """SIGKILL to all of it, the first process first, until nothing of it is left."""
        self._process.kill()
        while pids := _marked(f"{TOKEN}={self._mark}".encode()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait()


class _Forked:
    """A copy of this process that runs `slime` with these words, with the methods of `subprocess.Popen` that are used here."""

    def __init__(self, words: list[str], environment: dict[str, str], said: Path) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_be_slime, args=(words, environment, said))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def _be_slime(words: list[str], environment: dict[str, str], said: Path) -> None:
    from slime_core.cli.main import main as slime

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with said.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(slime(words))


def import_what_runs_need() -> None:
    """Import what a run in one process imports before it trains, so that copies of this process start at once."""
    for name in (
        *("torch.distributed.checkpoint.format_utils", "torch.distributed.fsdp", "torch.optim", "safetensors.torch"),
        *("transformers.models.auto", "transformers.models.llama.modeling_llama", "slime_core.cli.train"),
        *("slime_core.run.launch", "slime_torch.backend", "slime_engine_local.engine", "slime_losses.plugin"),
        *(
            "slime_rollout_sft.plugin",
            "slime_rollout_sglang.fully_async",
            "tokenizers",
            "jinja2.sandbox",
            "rich.progress",
        ),
    ):
        importlib.import_module(name)


def _marked(mark: bytes) -> list[int]:
    """The processes in whose environment there is this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def words(kind: Kind, work: Work, folder: Path, which: str) -> list[str]:
    """The command line of a run in a folder, after `slime`."""
    held = ("held", f"{work.rows}@[0:4]")
    return [
        *(which, "--hf-checkpoint", str(work.model), "--prompt-data", str(work.rows)),
        *(
            "--eval-prompt-data",
            *held,
            "--save",
            str(folder),
            "--load",
            str(folder),
            "--save-hf",
            str(folder / kind.export),
        ),
        *kind.flags.split(),
    ]


def run_unbroken(kind: Kind, work: Work, folder: Path) -> Unbroken:
    """Run it to its end."""
    folder.mkdir()
    began = time.time()
    warm = work.warm and "--ray" not in kind.flags
    with Process(words(kind, work, folder, kind.commands[0]), work.environment, folder / "said", warm) as process:
        _await(process, lambda: process.status is not None)
        if process.status != 0:
            raise SystemExit(f"The unbroken run failed with status {process.status}: {process.last_words}")
    lines = read_metrics(folder / "metrics.jsonl")
    if kind.shows and not any(line.get(kind.shows) for line in lines):
        raise SystemExit(f"{kind.shows} is zero in all rollouts, so these runs show nothing.")
    times = [line["time"] for line in lines]
    return Unbroken(
        folder,
        loading=times[0] - began,
        gap=median(after - before for before, after in pairwise(times)),
        evaluated=frozenset(line["rollout_id"] for line in lines if _is_evaluation(line)),
        last=lines[-1]["rollout_id"],
        lines=len(lines),
    )


def kill_and_compare(
    kind: Kind, work: Work, folder: Path, unbroken: Unbroken, kills: int, rng: random.Random, tally: Tally
) -> list[str]:
    """Start a run, kill it so often, let it end, and return what differs from the unbroken one; all of it is counted."""
    folder.mkdir(parents=True)
    found: list[str] = []
    for attempt in range(kills + 1):
        tally.starts += 1
        command_line, said = words(kind, work, folder, rng.choice(kind.commands)), folder / f"said-{attempt}"
        with Process(command_line, work.environment, said, work.warm and "--ray" not in kind.flags) as process:
            before = Traces.of(folder)
            moment = aim(rng, before, process, unbroken, folder) if attempt < kills else lambda: False
            _await(process, lambda moment=moment: process.status is not None or moment())
            status = process.status
            process.kill()
        if status is None:
            tally.hits[Traces.of(folder).phase(before, unbroken)] += 1
            unbroken.haste[0] = min(1.0, 1.2 * unbroken.haste[0])
        elif status != 0:
            found = [f"start {attempt + 1} failed with status {status}: {process.last_words}"]
            break
        else:
            unbroken.haste[0] *= 0.6 if attempt < kills else 1.0
            break
    tally.runs += 1
    found = found or differences(unbroken.folder, folder)
    tally.differences += found
    return found


def _await(process: Process, over: Callable[[], bool]) -> None:
    while not over():
        if time.monotonic() - process.started > LIMIT_S:
            raise SystemExit(f"A run has not come to its end after {LIMIT_S:.0f} s: {process.last_words}")
        time.sleep(LOOK_S)


# ------------------------------------------------------------------------------------------------------- the moments


@dataclass(frozen=True)
class Traces:
    """What a run has left on disk so far.

    Attributes:
        lines: of metrics, whole ones.
        last: rollout of the last one; -1 before any.
        evaluated: whether that is of an evaluation.
        unfinished: the checkpoint that was being written, by a number that no other has.
        newest: rollout of the newest checkpoint; -1 without one.
    """

    lines: int
    last: int
    evaluated: bool
    unfinished: int | None
    newest: int

    @staticmethod
    def of(folder: Path) -> Traces:
        lines = []
        with suppress(OSError):
            lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        line = json.loads(lines[-1]) if lines else {"rollout_id": -1}
        unfinished = None
        for path in folder.glob(".saving_*"):
            with suppress(OSError):
                unfinished = path.stat().st_ino
        newest = max((int(path.name[5:]) for path in folder.glob("iter_*")), default=-1)
        return Traces(len(lines), line["rollout_id"], _is_evaluation(line), unfinished, newest)

    def phase(self, before: Traces, unbroken: Unbroken) -> str:
        """What a run was doing that was killed with these traces, and started with those before."""
        if self.unfinished is not None and self.unfinished != before.unfinished:
            return "checkpoint"
        if self.newest == unbroken.last:
            return "export"
        if self.lines == before.lines or self.lines == 0:
            return "loading"
        return "evaluation" if self.last in unbroken.evaluated and not self.evaluated else "rollout or training"


def aim(rng: random.Random, before: Traces, process: Process, unbroken: Unbroken, folder: Path) -> Callable[[], bool]:
    """A random moment: in a random phase, and a random time after that began. Returns whether it has come."""
    phase = rng.choice(PHASES)
    further = rng.randint(1, max(1, unbroken.lines - before.lines - 1))

    def has_begun() -> bool:
        if phase == "loading":
            return True
        now = Traces.of(folder)
        return {
            "rollout or training": now.lines != before.lines
            and now.lines >= min(before.lines + further, unbroken.lines - 1),
            "evaluation": now.lines != before.lines and now.last in unbroken.evaluated and not now.evaluated,
            "checkpoint": now.unfinished is not None
            and now.unfinished != before.unfinished
            and now.last >= before.newest,
            "export": now.newest == unbroken.last,
        }[phase]

    longest = {"loading": unbroken.loading, "checkpoint": min(0.05, unbroken.gap)}.get(phase, unbroken.gap)
    delay, begun = rng.uniform(0, longest * unbroken.haste[0]), []

    def has_come() -> bool:
        if not begun and has_begun():
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] >= delay

    return has_come


def _is_evaluation(line: dict[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in line)


# ----------------------------------------------------------------------------------- what the runs call by import path


async def even_tokens(args: Any, sample: Any) -> float:
    """A reward: the share of even token ids in the response, which varies within a group."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


def in_half_of_the_groups(args: Any, samples: list[Any], **more: Any) -> bool:
    """A dynamic filter: keeps groups with even numbers."""
    return samples[0].group_index % 2 == 0


# ------------------------------------------------------------------------------------------------------------ the report


def report(tallies: dict[str, Tally], wanted: dict[str, int], seed: int) -> str:
    """What was seen, as Markdown."""
    lines = [
        "# Runs that were killed and resumed, against runs that were not",
        "",
        f"`{command('kills')}`, seed {seed}",
        "",
        "| kind | kills | " + " | ".join(PHASES) + " | runs | starts | differences | seconds |",
        "|---" * (len(PHASES) + 6) + "|",
    ]
    for name, tally in tallies.items():
        short = f" of {wanted[name]}" if tally.hits.total() < wanted[name] else ""
        phases = " | ".join(str(tally.hits[phase]) for phase in PHASES)
        counts = f"{tally.runs} | {tally.starts} | {len(tally.differences)} | {tally.seconds:.0f}"
        lines.append(f"| {name} | {tally.hits.total()}{short} | {phases} | {counts} |")
    return "\n".join(lines)


def write(tallies: dict[str, Tally], seed: int) -> None:
    """To benchmarks/results, beside what is there of other kinds."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "kills.json"
    kinds = json.loads(file.read_text())["kinds"] if file.exists() else {}
    kinds |= {name: {"command": command("kills"), "seed": seed, **vars(tally)} for name, tally in tallies.items()}
    found = {"machine": machine(1), "versions": versions(*PACKAGES), "kinds": kinds}
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
