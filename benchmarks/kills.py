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
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.killing.kinds import KINDS, Kind
from benchmarks.killing.moments import PHASES, Traces, Unbroken, aim, is_evaluation
from benchmarks.killing.process import Process, import_what_runs_need
from benchmarks.processes import measured_environment, unwind_on_signals
from benchmarks.report import RESULTS, command, machine, tell, versions
from benchmarks.run_state import differences
from slime_core.run.tracking import read_metrics

PACKAGES = ("slime-core", "torch", "transformers", "ray")
LIMIT_S, LOOK_S = 300.0, 0.001


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
        evaluated=frozenset(line["rollout_id"] for line in lines if is_evaluation(line)),
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
