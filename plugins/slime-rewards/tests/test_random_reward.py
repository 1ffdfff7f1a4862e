"""`random` carries no information, and can be repeated."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace

from slime_core.sample import Sample
from slime_rewards.random_reward import random


def scores(seed: int, response: str = "7") -> list[float]:
    args = SimpleNamespace(rollout_seed=seed)

    async def all_of_them() -> list[float]:
        return [await random(args, Sample(index=i, response=response, label="7")) for i in range(2000)]

    return asyncio.run(all_of_them())


def test_it_depends_on_seed_and_number_only() -> None:
    assert scores(1) == scores(1, "something else")
    assert scores(1) != scores(2)


def test_both_values_are_equally_likely_and_neighbours_independent() -> None:
    drawn = scores(1)
    assert set(drawn) == {0.0, 1.0}
    assert abs(sum(drawn) - 1000) < 4 * 22.4  # four standard deviations
    assert abs(sum(a == b for a, b in pairwise(drawn)) - 1000) < 4 * 22.4
