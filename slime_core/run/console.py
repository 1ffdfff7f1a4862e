"""What a person sees of a run on the terminal while it goes on. Called by `slime_core.run.launch` and whoever does something in a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from slime_core.display import told


class Console:
    """Tells a person how the run goes: one line per rollout and evaluation; on a terminal also a progress bar.

    Args:
        total: rollouts in the whole run; 0: there is no progress to show.
        done: rollouts that a resumed run has behind it.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = RichConsole(file=sys.stderr, highlight=False, soft_wrap=True)
        self._total, self._done = total, done
        self._durations: list[float] = []
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal or not total,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, note="")
        self._progress.start()

    def say(self, text: str) -> None:
        """Print a line of plain text."""
        self._console.print(told(text), markup=False)

    def rollout(self, rollout_id: int, metrics: Mapping[str, float]) -> None:
        """Print the line of a rollout that has been trained on, and move the progress bar."""
        self._done += 1
        self._durations.append(metrics["perf/rollout_time"])
        # The median of the last rollouts is not upset by the first, slow one.
        recent = sorted(self._durations[-20:])
        left = (self._total - self._done) * recent[len(recent) // 2]
        note = f"{metrics['perf/tokens_per_second']:.0f} tok/s, {clock(left)} left"
        self.say("  ".join([f"rollout {rollout_id + 1}/{self._total}", *told_of_training(metrics), note]))
        self._progress.update(self._task, completed=self._done, note=note)

    def evaluation(self, rollout_id: int, metrics: Mapping[str, float]) -> None:
        """Print the line of an evaluation."""
        when = "before training" if rollout_id < 0 else f"after rollout {rollout_id + 1}"
        self.say(f"evaluation {when}: {'  '.join(told_of_evaluation(metrics))}")

    def close(self) -> None:
        self._progress.stop()


def told_of_training(metrics: Mapping[str, float]) -> list[str]:
    """What the line of a rollout says. The loss of a policy gradient says nothing of how training goes (with one step a rollout it is
    0) and is left to the metrics."""
    left_out = {"train/loss"} if "train/pg_loss" in metrics else set()
    kl = next(((name, label, ".2g") for name, label in _KL if metrics.get(name)), None)
    shown = [*_SHOWN, *([kl] if kl else []), *_ALWAYS]
    return [
        f"{label} {metrics[name]:{form}}" for name, label, form in shown if name in metrics and name not in left_out
    ]


def told_of_evaluation(metrics: Mapping[str, float]) -> list[str]:
    """What the line of an evaluation says: what was measured, but not what hooks did not do, and of lengths the mean."""
    return [
        f"{name.removeprefix('eval/')} {value:.4f}"
        for name, value in metrics.items()
        if "perf/" not in name
        and not ("hooks/" in name and not value)
        and not name.endswith(("/response_len/min", "/response_len/max"))
    ]


_SHOWN = (
    ("rollout/raw_reward", "reward", ".3f"),
    ("rollout/response_len/mean", "length", ".0f"),
    ("rollout/truncated_ratio", "truncated", ".0%"),
    ("train/loss", "loss", ".4f"),
)
_KL = (
    ("train/kl_loss", "KL to reference"),
    ("train/ppo_kl", "KL to old weights"),
    ("train/train_rollout_kl", "KL to engine"),
)
"""Divergences of the policy, the one that says most first: of several, the first that is not 0 is shown."""
_ALWAYS = (("train/lr", "lr", ".2e"), ("train/grad_norm", "grad norm", ".2f"))


def clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
