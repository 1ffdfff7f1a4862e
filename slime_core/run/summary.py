"""What a run says at its end, whatever ended it: how far it came, its first, best and last scores, which data it lost, where things
are, and how to go on. Called by `slime_core.run.launch`."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from slime_core.arguments import RunArguments
from slime_core.run.best import best_checkpoint, keeps_best
from slime_core.run.checkpoints import find_latest
from slime_core.run.console import clock

LOST = ("skipped", "dropped", "truncated", "malformed", "with_dropped_text", "lost", "cut_to_context")
"""Words in the names of metrics that count data which was not trained as it stands."""
TRAINING = ("rollout/raw_reward", "train/loss")


def _counts_losses(metric: str) -> bool:
    return not metric.endswith("_ratio") and any(word in metric for word in LOST)


class Summary:
    """Takes note of all metrics of a run.

    Args:
        total: rollouts of the whole run.
        done: rollouts that a resumed run has behind it.
        epochs: `--num-epoch` says how long the run is.
    """

    def __init__(self, total: int, done: int, epochs: bool = False) -> None:
        self._started, self._total, self._before, self._epochs = time.perf_counter(), total, done, epochs
        self._done = done
        self._scores: dict[str, list[float]] = {}
        self._lost: Counter[str] = Counter()
        self._policy_gradient = False

    def note(self, metrics: Mapping[str, float], rollout_id: int) -> None:
        """Take note of what is logged after a rollout or an evaluation."""
        if any(name.startswith("train/") for name in metrics) or "perf/rollout_time" in metrics:
            self._done = max(self._done, rollout_id + 1)
        self._policy_gradient |= "train/pg_loss" in metrics
        for name, value in metrics.items():
            if name in TRAINING or (name.startswith("eval/") and name.rpartition("/")[2] in ("loss", "reward")):
                self._scores.setdefault(name, []).append(value)
            elif not name.startswith("perf/") and _counts_losses(name.rpartition("/")[2]) and math.isfinite(value):
                self._lost[name] += int(value)

    def lines(self, args: RunArguments, run_dir: Path, stopped_early: bool = False, reports: bool = False) -> list[str]:
        """The summary, line by line.

        Args:
            reports: there is a command `slime report`.
        """
        here = self._done - self._before
        earlier = f", {self._before} of them earlier" if self._before else ""
        lines = [
            f"{self._done} of {self._total} rollouts are done{earlier}; {clock(time.perf_counter() - self._started)} for "
            f"{'this' if here == 1 else 'these'} {here}"
        ]
        for name, values in self._scores.items():
            if name == "train/loss" and self._policy_gradient:
                continue  # says nothing of how training went
            best = min(values) if name.endswith("loss") else max(values)
            lines.append(f"{name}  first {values[0]:.4f}  best {best:.4f}  last {values[-1]:.4f}")
        if lost := {name: count for name, count in self._lost.items() if count}:
            lines.append("not trained as it stands: " + ", ".join(f"{name} {count}" for name, count in lost.items()))
            if self._epochs and any(name.rpartition("/")[2].startswith("skipped_") for name in lost):
                lines.append(
                    f"prompts that are skipped count in --num-epoch {args.num_epoch}: the others were read more often"
                )
        lines.append(f"run directory: {run_dir}")
        if reports:
            lines.append(f"report: slime report {shlex.quote(str(run_dir))}")
        newest = find_latest(Path(args.save)) if args.save else None
        if newest is not None:
            lines.append(f"newest checkpoint: {newest}")
            if keeps_best(args) and (kept := best_checkpoint(newest.parent)):
                lines.append(f"best checkpoint: {kept}")
            if self._done < self._total and not stopped_early:
                lines.append(f"to go on: the same command with --load {args.save}")
        if not args.save and not args.save_hf and here and not args.debug_rollout_only:
            lines.append("no weights are kept: neither --save nor --save-hf was given")
        return lines
