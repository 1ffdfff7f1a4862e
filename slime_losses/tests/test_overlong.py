"""dapo_overlong: the penalty of the paper, then the normalisation that the estimator would have made."""

from __future__ import annotations

import statistics

import pytest
from policy_cases import arguments

from slime_core.errors import SampleError
from slime_core.sample import Sample
from slime_losses.overlong import dapo_overlong, overlong_penalty


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (120, -1.0)],
)
def test_the_penalty_is_that_of_the_paper(length: int, penalty: float) -> None:
    assert overlong_penalty(length, limit=100, buffer=20) == pytest.approx(penalty, abs=1e-15)


def samples() -> list[Sample]:
    lengths, rewards, groups = (10, 90, 100, 95, 10, 20), (1.0, 1.0, 0.0, 1.0, 0.5, 0.5), (7, 7, 7, 9, 9, 9)
    return [
        Sample(tokens=[0] * (n + 1), response_length=n, reward=r, group_index=g)
        for n, r, g in zip(lengths, rewards, groups, strict=True)
    ]


SHAPED = [1.0, 0.0, -2.0, -0.5, 0.5, 0.5]  # factor 2


def test_rewards_are_shaped_and_then_normalised_in_their_group() -> None:
    args = arguments(rollout_max_response_len=100, overlong_buffer_len=20, overlong_penalty_factor=2.0)
    raw, trained = dapo_overlong(args, samples())
    assert raw == [1.0, 1.0, 0.0, 1.0, 0.5, 0.5]
    expected = []
    for group in (SHAPED[:3], SHAPED[3:]):
        expected += [(r - statistics.mean(group)) / (statistics.stdev(group) + 1e-6) for r in group]
    assert trained == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"advantage_estimator": "ppo"}, SHAPED),
        ({"disable_rewards_normalization": True}, SHAPED),
        ({"advantage_estimator": "rloo"}, [2.0, 0.5, -2.5, -1.0, 0.5, 0.5]),
        ({"disable_grpo_std_normalization": True}, [4 / 3, 1 / 3, -5 / 3, -2 / 3, 1 / 3, 1 / 3]),
    ],
    ids=["no group baseline", "off", "rloo", "without std"],
)
def test_the_normalisation_is_the_estimators(options: dict[str, object], expected: list[float]) -> None:
    lengths = {"rollout_max_response_len": 100, "overlong_buffer_len": 20, "overlong_penalty_factor": 2.0}
    _, trained = dapo_overlong(arguments(**lengths, **options), samples())
    assert trained == pytest.approx(expected, rel=1e-12)


def test_reward_key_picks_from_a_dict() -> None:
    given = [Sample(tokens=[0, 1], response_length=1, reward={"a": x, "b": 9.0}, group_index=0) for x in (0.0, 1.0)]
    raw, trained = dapo_overlong(arguments(reward_key="a", advantage_estimator="ppo", overlong_buffer_len=20), given)
    assert raw == trained == [0.0, 1.0]


@pytest.mark.parametrize("reward", [None, {"b": 1.0}])
def test_a_sample_without_its_reward_is_named(reward: object) -> None:
    given = [Sample(tokens=[0, 1], response_length=1, reward=reward, group_index=0, index=5)]
    with pytest.raises(SampleError, match="sample 5"):
        dapo_overlong(arguments(reward_key="a", overlong_buffer_len=20), given)
