"""How sure the numbers of an evaluation are: of a loss or reward the standard error over the rows of its set, and of two models on the
same rows that of their difference. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slime_core.sample import Sample
from slime_core.trajectories import means_of_trajectories

_NORMAL = 1.96
"""Standard errors on either side of a number between which 95 % of a normal distribution lie."""


@dataclass(frozen=True)
class Score:
    """A mean over the rows of an evaluation set.

    Attributes:
        value: the mean, as the run logs it.
        rows: how many rows it is over; of a reward: prompts, whatever the number of answers to each.
        parts: of each row, by its name, what it adds to the mean: the mean of all of them is `value`.
    """

    value: float
    rows: int
    parts: Mapping[str, float] = field(repr=False)

    @property
    def standard_error(self) -> float | None:
        """Of the value; None for a single row."""
        return _error([*self.parts.values()])

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the value: Student's, or Wilson's where every row is 0 or 1. None for a single row."""
        error = self.standard_error
        if error is None:
            return None
        if all(part in (0.0, 1.0) for part in self.parts.values()):
            z, n, p = _NORMAL, self.rows, self.value
            middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
            return (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)
        return self.value - _width(self.rows) * error, self.value + _width(self.rows) * error

    def difference(self, other: Score) -> tuple[float, float | None] | None:
        """How much higher this is than another model's on the same rows, and half the width of the 95 % interval of that; None
        where the rows are others."""
        if self.parts.keys() != other.parts.keys():
            return None
        error = _error([own - other.parts[name] for name, own in self.parts.items()])
        return self.value - other.value, None if error is None else _width(self.rows) * error


def _error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _width(rows: int) -> float:
    """Standard errors on either side of a mean over so many rows between which 95 % lie, by the expansion of Student's distribution
    in powers of 1 / (rows - 1)."""
    z, freedom = _NORMAL, rows - 1
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def reward_scores(generations: Sequence[Sample]) -> dict[str, Score]:
    """The mean reward of each set. Trajectories count once, and the answers to a prompt together are one row."""
    sets: dict[str, list[Sample]] = {}
    for sample in generations:
        if isinstance(sample.reward, (int, float)):
            sets.setdefault(str(sample.dataset), []).append(sample)
    found = {}
    for name, samples in sets.items():
        found[name] = score_of({prompt: _rewards(own) for prompt, own in _by_prompt(samples).items()})
    return found


def score_of(rewards: Mapping[str, Sequence[float]]) -> Score:
    """The mean of rewards, of which the answers to a prompt together are one row.

    Args:
        rewards: of each prompt, by its name, those of its answers; at least one.
    """
    every = [reward for own in rewards.values() for reward in own]
    value = sum(every) / len(every)
    per = len(every) / len(rewards)
    # Linear in the rows, so that prompts of which fewer answers are there weigh less.
    parts = {prompt: value + sum(r - value for r in own) / per for prompt, own in rewards.items()}
    return Score(value, len(rewards), parts)


def loss_score(loss: float, rows: Sequence[tuple[str, float, int]], per_token: bool) -> Score | None:
    """The loss of a set, if it is the mean of -log p over trained tokens, or over rows of each row's own mean; None for any other
    loss, of which nothing is known.

    Args:
        loss: as it was measured.
        rows: (name, sum of -log p over trained tokens, how many they are) of each row.
    """
    counted = [(name, total, tokens) for name, total, tokens in rows if tokens]
    if not counted:
        return None
    if per_token:
        per = sum(tokens for _, _, tokens in counted) / len(counted)
        mean = sum(total for _, total, _ in counted) / (per * len(counted))
        parts = {name: mean + (total - mean * tokens) / per for name, total, tokens in counted}
    else:
        parts = {name: total / tokens for name, total, tokens in counted}
        mean = statistics.fmean(parts.values())
    if len(parts) < len(counted) or not math.isclose(mean, loss, rel_tol=1e-3, abs_tol=1e-4):
        return None
    return Score(loss, len(counted), parts)


def _by_prompt(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(row_name(sample), []).append(sample)
    return found


def _rewards(samples: Sequence[Sample]) -> list[float]:
    return means_of_trajectories(samples, [float(s.reward) for s in samples if isinstance(s.reward, (int, float))])


def row_name(sample: Sample) -> str:
    """What a row of an evaluation set is called, the same for every model: where it is in its file, or its number."""
    return sample.source or str(sample.group_index)
