"""`--log-passrate`, `--log-multi-turn`, `--log-reward-category` log slime's numbers; `--group-rm` and
`--rollout-skip-special-tokens` do what they do there."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import rollout_cases
from rollout_cases import END, ScriptedEngine, rollout

from slime_core.data import GlobalDataSource
from slime_core.errors import SampleError
from slime_core.rollout.result import raw_rewards
from slime_core.sample import Sample
from slime_core.trajectories import pass_at_k, pass_rates, trajectory_rewards, trajectory_worths
from slime_rollout_sglang.asked_metrics import (
    asked_metrics,
    multi_turn,
    reward_categories,
)


def drawn(rewards: list[float], k: int) -> float:
    """pass@k by its definition: the share of all draws of k rewards that have a 1 among them."""
    draws = list(itertools.combinations(rewards, k))
    return sum(1.0 in draw for draw in draws) / len(draws)


@pytest.mark.parametrize("seed", range(8))
def test_pass_rates_are_the_share_of_draws_with_a_right_answer(seed: int) -> None:
    source = random.Random(seed)
    size = source.randrange(1, 9)
    groups = [[source.choice([0.0, 0.5, 1.0, -1.0, 2.0]) for _ in range(size)] for _ in range(source.randrange(1, 5))]
    expected = {f"pass@{k}": statistics.fmean(drawn(group, k) for group in groups) for k in (1, 2, 4, 8) if k <= size}
    assert pass_rates(groups) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_pass_at_k_is_the_product_that_slime_computes(n: int) -> None:
    for correct in range(n + 1):
        for k in range(1, n + 1):
            product = 1.0 if n - correct < k else 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))
            assert pass_at_k(n, correct, k) == pytest.approx(product, abs=1e-12)


def segments(*rewards: tuple[int, float]) -> list[Sample]:
    return [Sample(index=n, rollout_id=trajectory, reward=reward) for n, (trajectory, reward) in enumerate(rewards)]


def test_pass_rates_count_trajectories_whose_segments_all_have_the_reward_1() -> None:
    group = segments((0, 1.0), (0, 1.0), (1, 1.0), (1, 0.0), (2, 0.0), (3, 1.0))
    assert trajectory_rewards(group, None) == [1.0, 0.5, 0.0, 1.0]
    assert pass_rates([trajectory_rewards(group, None)]) == pytest.approx(
        {"pass@1": 0.5, "pass@2": 5 / 6, "pass@4": 1.0}
    )


def test_what_a_hook_noted_as_the_raw_reward_goes_before_the_reward_in_what_is_logged() -> None:
    group = [Sample(index=n, reward=0.0, metadata={"raw_reward": raw}) for n, raw in enumerate((1, 0.5, "none", None))]
    assert trajectory_worths(group, None) == [1.0, 0.5, 0.0, 0.0]
    args: Any = SimpleNamespace(disable_compute_advantages_and_returns=False, reward_key=None, log_passrate=True)
    args.log_multi_turn = args.log_reward_category = False
    assert raw_rewards(group, args) == {"raw_reward": 0.375}
    assert asked_metrics(args, [group])["passrate/pass@1"] == 0.25


def test_lengths_of_turns_are_those_of_the_masks() -> None:
    masks = [[1, 1, 0, 0, 1], [1], [0, 1, 1, 1]]
    samples = [
        Sample(response_length=len(mask), loss_mask=mask, metadata={"round_number": n + 1})
        for n, mask in enumerate(masks)
    ]
    samples.append(Sample(response_length=3, remove_sample=True))
    assert multi_turn(samples, longest=4) == {
        "multi_turn/raw_response_length/response_length_mean": (5 + 1 + 4 + 3) / 4,
        "multi_turn/raw_response_length/response_length_max": 5.0,
        "multi_turn/raw_response_length/response_length_min": 1.0,
        "multi_turn/raw_response_length/response_length_clip_ratio": 0.5,
        "multi_turn/wo_obs_response_length/response_length_mean": (3 + 1 + 3 + 0) / 4,
        "multi_turn/wo_obs_response_length/response_length_max": 3.0,
        "multi_turn/wo_obs_response_length/response_length_min": 0.0,
        "multi_turn/multi_turn_metric/round_number_mean": 2.0,
        "multi_turn/multi_turn_metric/round_number_max": 3.0,
        "multi_turn/multi_turn_metric/round_number_min": 1.0,
    }


def test_categories_of_rewards_are_shares_of_all_samples() -> None:
    rewards = [{"score": 1, "why": "right"}, {"score": 0, "why": "no box"}, {"score": 0, "why": "no box"}, {"score": 0}]
    assert reward_categories(rewards, "why") == {
        "error_cat/no box": 0.5,
        "error_cat/none": 0.25,
        "error_cat/right": 0.25,
    }
    with pytest.raises(SampleError, match=r"--log-reward-category is 'reason', but no reward is a dict with that key"):
        reward_categories(rewards, "reason")


def test_a_rollout_logs_what_is_asked_for_and_nothing_else(arguments: Any, plugins: Any) -> None:
    own = {"custom_rm_path": "rollout_cases.two_numbers", "reward_key": "format"}
    asked = rollout(
        arguments(**own, log_passrate=True, log_multi_turn=True, log_reward_category="format"), plugins
    ).metrics
    assert (asked["passrate/pass@1"], asked["passrate/pass@2"]) == (
        0.5,
        1.0,
    )  # of two samples of a prompt the odd one has 1
    assert asked["multi_turn/raw_response_length/response_length_mean"] == asked["response_len/mean"]
    assert (asked["error_cat/0.0"], asked["error_cat/1.0"]) == (0.5, 0.5)
    silent = rollout(arguments(**own), plugins).metrics
    assert not [name for name in silent if name.startswith(("passrate", "multi_turn", "error_cat"))]
    assert asked_metrics(arguments(**own), []) == {}


def whole_group(args: Any, them: Any, **kwargs: Any) -> list[float]:
    """The place of each sample in its group; the parameter is called what it likes."""
    assert all(isinstance(sample, Sample) for sample in them)
    return [float(place) for place, _ in enumerate(them)]


def test_group_rm_hands_whole_groups_to_the_reward(arguments: Any, plugins: Any) -> None:
    output = rollout(arguments(custom_rm_path="test_asked_metrics.whole_group", group_rm=True), plugins)
    assert [[sample.reward for sample in group] for group in output.groups] == [[0.0, 1.0]] * 3


def ten_times(args: Any, them: Any) -> list[float]:
    """What a generate function has set, ten times."""
    return [10.0 * sample.reward for sample in them]


@pytest.mark.parametrize("evaluation", [False, True])
def test_group_rm_scores_samples_that_have_a_reward_already_too_once(
    evaluation: bool, arguments: Any, plugins: Any
) -> None:
    own = {"custom_generate_function_path": "rollout_cases.self_scored", "over_sampling_batch_size": 6}
    args = arguments(8, custom_rm_path="test_asked_metrics.ten_times", group_rm=True, partial_rollout=True, **own)
    args = args.model_copy(update={"eval_prompt_data": args.prompt_data})
    source = GlobalDataSource(args)
    for rollout_id in range(2):  # groups that were finished and put back are not scored again
        output = rollout(args, plugins, ScriptedEngine(), source, rollout_id, evaluation)
        assert {sample.reward for sample in [*output.samples, *output.generations]} == {2.5}
    alone = args.model_copy(update={"group_rm": False, "custom_rm_path": "rollout_cases.length_reward"})
    assert {sample.reward for sample in rollout(alone, plugins).samples} == {0.25}
    assert rollout_cases.calls["reward"] == 0


@pytest.mark.parametrize("generator", [None, "rollout_cases.own_text"])
def test_special_tokens_stay_in_the_text_if_they_are_not_to_be_skipped(
    generator: str | None, arguments: Any, plugins: Any
) -> None:
    own = {"custom_generate_function_path": generator}
    for skip, ends in ((True, False), (False, True)):
        samples = rollout(arguments(rollout_skip_special_tokens=skip, **own), plugins, ScriptedEngine()).samples
        assert {sample.response.endswith("<end>") for sample in samples} == {ends}
        assert all(sample.tokens[-1] == END for sample in samples)
    assert rollout_cases.calls["own text"] == (0 if generator is None else 12)
