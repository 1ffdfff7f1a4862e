"""Which samples of a rollout are kept: those that a person would ask for first. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

Why = str


@dataclass(frozen=True)
class Candidate:
    """A sample of a rollout.

    Attributes:
        place: in the rollout.
        group: the number of its group in the rollout.
        reward: None where there is none.
        loss: the mean negative log-prob of its trained tokens; None where this rank has not computed it.
        difference: the mean of |trainer - engine| over its log-probs; None where one of them is missing.
        prompt: identifies its prompt.
    """

    place: int
    group: int
    reward: float | None
    loss: float | None
    difference: float | None
    prompt: str


@dataclass
class Choice:
    """The places that are kept, each with the reasons, in the order in which they were chosen."""

    limit: int
    places: dict[int, list[Why]] = field(default_factory=dict)

    def take(self, candidate: Candidate | None, why: Why) -> None:
        """Keep a sample, if there is room or it is kept already."""
        if candidate is None or (candidate.place not in self.places and len(self.places) >= self.limit):
            return
        reasons = self.places.setdefault(candidate.place, [])
        if why not in reasons:
            reasons.append(why)


def choose(candidates: Sequence[Candidate], limit: int, known: frozenset[str], rollout_id: int) -> dict[int, list[Why]]:
    """Choose at most `limit` samples of a rollout, and say why.

    The best and the worst have the highest and the lowest reward, where there are rewards that differ; of equal ones those in the group
    with the widest spread. Without rewards they have the lowest and the highest loss. The others are drawn at random, which depends on
    the number of the rollout alone.

    Args:
        known: prompts of which a sample is kept already.
    """
    choice = Choice(limit)
    best, worst = _extremes(candidates)
    choice.take(best, "best")
    choice.take(worst, "worst")
    different = [c for c in candidates if c.difference is not None]
    choice.take(max(different, key=lambda c: c.difference or 0.0, default=None), "largest_difference")
    again = [c for c in candidates if c.prompt in known and c.place not in choice.places]
    choice.take(again[0] if again else None, "same_prompt")
    for candidate in random.Random(rollout_id).sample(list(candidates), len(candidates)):
        if len(choice.places) >= limit:
            break
        if candidate.place not in choice.places:
            choice.take(candidate, "random")
    return choice.places


def _extremes(candidates: Sequence[Candidate]) -> tuple[Candidate | None, Candidate | None]:
    rewarded = [c for c in candidates if c.reward is not None]
    if rewarded:
        of_groups: dict[int, list[float]] = {}
        for c in rewarded:
            of_groups.setdefault(c.group, []).append(c.reward or 0.0)
        spread = {group: max(rewards) - min(rewards) for group, rewards in of_groups.items()}
        best = max(rewarded, key=lambda c: (c.reward or 0.0, spread[c.group], -c.place))
        worst = min(rewarded, key=lambda c: (c.reward or 0.0, -spread[c.group], c.place))
        return (best, worst) if best.reward != worst.reward else (None, None)
    computed = [c for c in candidates if c.loss is not None]
    if len(computed) < 2:
        return None, None
    ordered = sorted(computed, key=lambda c: (c.loss or 0.0, c.place))
    return ordered[0], ordered[-1]
