"""Does GRPO teach the model, and does it need the reward for that? `python -m benchmarks.learning`

Runs recipes/quickstart-grpo.yaml over several seeds, and as often on the same questions with shuffled answers: a reward
of the same kind that tells nothing. Prints, and writes to benchmarks/results, greedy accuracy before and after on
expressions that no training set holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from slime_core.run.tracking import read_metrics

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning.json"
RECIPE = ROOT / "recipes" / "quickstart-grpo.yaml"
TASKS = ROOT / ".cache" / "tasks"
METRIC = "eval/chain_sum/reward"
REWARDS = {"right answers": TASKS / "chain_sum_train.jsonl", "shuffled answers": TASKS / "chain_sum_shuffled.jsonl"}


@dataclass(frozen=True)
class Outcome:
    """One run. Accuracies are shares of the evaluation set, `seconds` the whole run's time."""

    rewards: str
    seed: int
    before: float
    after: float
    seconds: float

    @property
    def gain(self) -> float:
        return self.after - self.before


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("flags", nargs="*", help="further flags of slime train, after --")
    given = parser.parse_args()
    outcomes = []
    for seed in given.seeds:
        for rewards in REWARDS:
            outcomes.append(run(rewards, seed, given.flags))
            print(line(outcomes[-1]), flush=True)
    for rewards in REWARDS:
        own = [outcome for outcome in outcomes if outcome.rewards == rewards]
        print(f"{rewards}: mean gain {100 * mean(o.gain for o in own):+.1f} points over {len(own)} seeds")
    if not given.flags:
        results = {"cpu": platform.processor() or platform.machine(), "runs": [asdict(o) for o in outcomes]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def run(rewards: str, seed: int, flags: list[str]) -> Outcome:
    """One run of the recipe in a process of its own."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "slime_core", "train", str(RECIPE), "--prompt-data", str(REWARDS[rewards])]
        command += ["--rollout-seed", str(seed), "--seed", str(seed), "--run-dir", folder, *flags]
        subprocess.run(command, check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
        values = [line[METRIC] for line in read_metrics(Path(folder) / "metrics.jsonl") if METRIC in line]
    return Outcome(rewards, seed, values[0], values[-1], time.perf_counter() - started)


def line(outcome: Outcome) -> str:
    """As a row of a Markdown table."""
    return (
        f"| {outcome.rewards} | {outcome.seed} | {100 * outcome.before:.1f} % | {100 * outcome.after:.1f} % "
        f"| {100 * outcome.gain:+.1f} | {outcome.seconds:.0f} s |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
