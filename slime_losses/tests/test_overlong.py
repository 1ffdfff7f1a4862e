"""dapo_overlong: the penalty of the paper, then the normalisation that the estimator would have made."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from policy_cases import arguments

from slime_core.errors import ArgumentError, SampleError
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_core.testing import advantage_inputs
from slime_losses.arguments import OVERLONG_ESTIMATORS
from slime_losses.overlong import NORMALISED_BY, dapo_overlong, overlong_penalty
from slime_losses.plugin import slime_advantages


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (120, -1.0)],
)
def test_the_penalty_is_that_of_the_paper(length: int, penalty: float) -> None:
    assert overlong_penalty(length, limit=100, buffer=20) == pytest.approx(penalty, abs=1e-15)


def samples() -> list[Sample]:
    lengths, rewards, groups = (10, 90, 100, 95, 10, 20), (1.0, 1.0, 0.0, 1.0, 0.5, 0.5), (7, 7, 7, 9, 9, 9)
    return [
        Sample(tokens=[0] * (n + 1), response_length=n, reward=r, group_index=g, index=i)
        for i, (n, r, g) in enumerate(zip(lengths, rewards, groups, strict=True))
    ]


LENGTHS = {"rollout_max_response_len": 100, "overlong_buffer_len": 20, "overlong_penalty_factor": 2.0}
SHAPED = [1.0, 0.0, -2.0, -0.5, 0.5, 0.5]


def test_rewards_are_shaped_and_then_normalised_in_their_group() -> None:
    raw, trained = dapo_overlong(arguments(**LENGTHS), samples())
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
        ({"custom_advantage_function_path": "rloo"}, [2.0, 0.5, -2.5, -1.0, 0.5, 0.5]),
    ],
    ids=["no group baseline", "off", "rloo", "without std", "rloo as one's own"],
)
def test_the_normalisation_is_the_estimators(options: dict[str, object], expected: list[float]) -> None:
    _, trained = dapo_overlong(arguments(**LENGTHS, **options), samples())
    assert trained == pytest.approx(expected, rel=1e-12)


def test_segments_of_one_trajectory_count_once_in_the_normalisation() -> None:
    given = samples()
    given[1].rollout_id = given[2].rollout_id = 40  # with the shaped rewards 0 and -2, which are -1 together
    _, trained = dapo_overlong(arguments(**LENGTHS, disable_grpo_std_normalization=True), given)
    assert trained[:3] == pytest.approx([1.0, 0.0, -2.0], rel=1e-12)
    _, trained = dapo_overlong(arguments(**LENGTHS, advantage_estimator="rloo"), given)
    assert trained[:3] == pytest.approx([2.0, -1.0, -3.0], rel=1e-12)


@pytest.mark.parametrize("off", [(), ("disable_rewards_normalization",), ("disable_grpo_std_normalization",)])
@pytest.mark.parametrize("name", slime_advantages())
def test_a_penalty_of_0_changes_no_bit_of_any_estimators_advantages(name: str, off: tuple[str, ...]) -> None:
    estimator = Plugins().select("advantage", name)
    changes: dict[str, Any] = dict.fromkeys(off, True)
    args = arguments(overlong_penalty_factor=0.0, advantage_estimator=name, kl_coef=0.1, **changes)
    inputs = advantage_inputs()
    given = [
        Sample(tokens=[0] * (n + 1), response_length=n, reward=reward, group_index=50 - group, index=i)
        for i, (n, reward, group) in enumerate(
            zip(inputs.lengths.tolist(), inputs.rewards.tolist(), inputs.group_index.tolist(), strict=True)
        )
    ]
    rewards = torch.tensor(dapo_overlong(args, given)[1], dtype=torch.float64)
    assert torch.equal(rewards, inputs.rewards) == bool(
        name in ("ppo", "reinforce_plus_plus") or "disable_rewards_normalization" in off
    )
    final = advantage_inputs(rewards_are_final=True)
    final.rewards.copy_(rewards)
    assert torch.equal(estimator(args, final).advantages, estimator(args, inputs).advantages)


def test_it_knows_all_estimators_of_this_distribution() -> None:
    assert set(NORMALISED_BY) == set(OVERLONG_ESTIMATORS) == set(slime_advantages())


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"advantage_estimator": "somebodys"}, "--advantage-estimator somebodys"),
        ({"custom_advantage_function_path": "my.own"}, "--custom-advantage-function-path my.own"),
    ],
)
def test_an_estimator_that_it_does_not_know_is_an_error_that_names_those_it_does(
    options: dict[str, str], given: str
) -> None:
    with pytest.raises(ArgumentError, match=given) as error:
        dapo_overlong(arguments(**LENGTHS, **options), samples())
    assert f"It shapes rewards for {', '.join(OVERLONG_ESTIMATORS)}." in str(error.value)


def test_a_sample_without_a_group_is_named() -> None:
    given = samples()
    given[4].group_index = None
    for estimator in ("grpo", "ppo"):
        with pytest.raises(SampleError, match="sample 4 has no group_index"):
            dapo_overlong(arguments(**LENGTHS, advantage_estimator=estimator), given)


def test_reward_key_picks_from_a_dict() -> None:
    given = [Sample(tokens=[0, 1], response_length=1, reward={"a": x, "b": 9.0}, group_index=0) for x in (0.0, 1.0)]
    raw, trained = dapo_overlong(arguments(reward_key="a", advantage_estimator="ppo", overlong_buffer_len=20), given)
    assert raw == trained == [0.0, 1.0]


@pytest.mark.parametrize("reward", [None, {"b": 1.0}])
def test_a_sample_without_its_reward_is_named(reward: Any) -> None:
    given = [Sample(tokens=[0, 1], response_length=1, reward=reward, group_index=0, index=5)]
    with pytest.raises(SampleError, match="sample 5"):
        dapo_overlong(arguments(reward_key="a", overlong_buffer_len=20), given)
