"""Early stopping: when the watched evaluation metric has not improved for some evaluations, the run ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from slime_core.errors import ArgumentError


@dataclass
class EarlyStopping:
    """Watches one metric of the evaluations, and says when it has stopped improving.

    Attributes:
        patience: evaluations in a row without a new best value that end the run.
        metric: see `--early-stopping-metric`.
        best: the best value so far; higher is better inside this class.
        best_rollout: the rollout after which it was measured, -1 before the first one; None without an evaluation.
        without_gain: evaluations since then.
    """

    patience: int
    metric: str
    best: float = -math.inf
    best_rollout: int | None = None
    without_gain: int = 0

    @property
    def stopped(self) -> bool:
        """Whether the run is to end."""
        return self.without_gain >= self.patience

    def update(self, metrics: dict[str, float], rollout_id: int) -> bool:
        """Take note of the evaluation after a rollout (names with `eval/`); True when the run should stop now."""
        value = self._score(metrics)
        if value > self.best:
            self.best, self.best_rollout, self.without_gain = value, rollout_id, 0
        else:
            self.without_gain += 1
        return self.stopped

    def in_words(self) -> str:
        """Why the run was ended."""
        return (
            f"stopped early: {self.without_gain} evaluations without a better {self.metric} than {self._best_in_words()} "
            f"(--early-stopping-patience {self.patience})"
        )

    def best_in_words(self) -> str:
        """Which evaluation was the best one."""
        when = "before training" if self.best_rollout == -1 else f"after rollout {(self.best_rollout or 0) + 1}"
        return f"the best {self.metric}, {self._best_in_words()}, was that {when}"

    def _best_in_words(self) -> str:
        return f"{-self.best if self._lowest_wins() else self.best:.4f}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best if math.isfinite(self.best) else None,
            "best_rollout": self.best_rollout,
            "without_gain": self.without_gain,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = -math.inf if state["best"] is None else state["best"]
        self.best_rollout = state.get("best_rollout")  # one that did not know it was written by an earlier version
        self.without_gain = state["without_gain"]

    def _lowest_wins(self) -> bool:
        return self.metric == "loss" or ("/" in self.metric and not self.metric.startswith("-"))

    def _score(self, metrics: dict[str, float]) -> float:
        sign = -1.0 if self._lowest_wins() else 1.0
        name = self.metric.removeprefix("-")
        values = [v for k, v in metrics.items() if (k == name if "/" in name else k.endswith(f"/{name}"))]
        if not values:
            raise ArgumentError(
                f"--early-stopping-metric is {self.metric!r}, but the evaluation measured only: {', '.join(sorted(metrics))}."
            )
        return sign * sum(values) / len(values)
