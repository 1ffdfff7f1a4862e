"""The advantage estimators equal their papers, computed one token at a time with Python floats."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from policy_cases import arguments, kl_reference

from slime_core.contracts.advantage import AdvantageInputs
from slime_core.contracts.loss import what_reads
from slime_core.errors import ArgumentError
from slime_losses.advantages import grpo as grpo_file
from slime_losses.advantages import tokens
from slime_losses.advantages.dr_grpo import dr_grpo
from slime_losses.advantages.groups import centred, standardised
from slime_losses.advantages.grpo import grpo
from slime_losses.advantages.ppo import ppo
from slime_losses.advantages.reinforce_plus_plus import reinforce_plus_plus
from slime_losses.advantages.reinforce_plus_plus_baseline import reinforce_plus_plus_baseline
from slime_losses.advantages.rloo import rloo


@dataclass
class Rollout:
    """S samples in plain Python; the columns hold one list per sample. Without `trajectories` each is one of its own."""

    rewards: list[float]
    groups: list[int]
    masks: list[list[int]]
    log_probs: list[list[float]] = field(default_factory=list)
    ref_log_probs: list[list[float]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    trajectories: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trajectories = self.trajectories or list(range(len(self.rewards)))


def rollout(seed: int, sizes: Sequence[int] = (4, 3, 1), longest: int = 20, segments: int = 1) -> Rollout:
    """Groups of the given sizes with random rewards and lengths; some tokens are masked, some samples wholly.

    Args:
        sizes: the trajectories of each group.
        segments: the most that a trajectory has; their rewards differ.
    """
    draw = random.Random(seed)
    owners = [(g, draw.randint(1, segments)) for g, size in enumerate(sizes) for _ in range(size)]
    trajectories = [t for t, (_, count) in enumerate(owners) for _ in range(count)]
    numbers = [owners[t][0] for t in trajectories]
    masks = [[int(draw.random() < 0.7) for _ in range(draw.randint(1, longest))] for _ in numbers]
    masks[0] = [0] * len(masks[0])
    masks[1][-1] = 0

    def column(spread: float) -> list[list[float]]:
        return [[draw.gauss(0, spread) * m for m in mask] for mask in masks]

    log_probs = [[-draw.expovariate(1.0) * m for m in mask] for mask in masks]
    reference = [[lp + draw.gauss(0, 0.3) * (lp != 0) for lp in row] for row in log_probs]
    rewards = [draw.gauss(0, 2) for _ in numbers]
    return Rollout(rewards, numbers, masks, log_probs, reference, column(1.0), trajectories)


def inputs_of(r: Rollout, **changes: Any) -> AdvantageInputs:
    def flat(rows: list[list[float]]) -> torch.Tensor:
        return torch.tensor([x for row in rows for x in row], dtype=torch.float64)

    fields: dict[str, Any] = {
        "rewards": torch.tensor(r.rewards, dtype=torch.float64),
        "group_index": torch.tensor(r.groups),
        "lengths": torch.tensor([len(mask) for mask in r.masks]),
        "loss_mask": flat(r.masks),
        "sample_index": torch.tensor([s for s, mask in enumerate(r.masks) for _ in mask]),
        "log_probs": flat(r.log_probs),
        "ref_log_probs": flat(r.ref_log_probs),
        "values": flat(r.values),
        "trajectory_index": torch.tensor(r.trajectories),
    }
    return AdvantageInputs(**{**fields, **changes})


# ------------------------------------------------------------------------------------------------ from the papers


def rewards_of_group(r: Rollout, s: int) -> dict[int, list[float]]:
    """For each trajectory of the group of sample s the rewards of its segments."""
    found: dict[int, list[float]] = {}
    for reward, group, trajectory in zip(r.rewards, r.groups, r.trajectories, strict=True):
        if group == r.groups[s]:
            found.setdefault(trajectory, []).append(reward)
    return found


def centred_reward(r: Rollout, s: int) -> float:
    return r.rewards[s] - statistics.fmean(map(statistics.fmean, rewards_of_group(r, s).values()))


def standardised_reward(r: Rollout, s: int) -> float:
    group = rewards_of_group(r, s)
    mean = statistics.fmean(map(statistics.fmean, group.values()))
    squares = math.fsum(statistics.fmean([(x - mean) ** 2 for x in segments]) for segments in group.values())
    return (r.rewards[s] - mean) / (math.sqrt(squares / max(1, len(group) - 1)) + 1e-6)


def left_out_reward(r: Rollout, s: int) -> float:
    group = rewards_of_group(r, s)
    own = group.pop(r.trajectories[s])
    rest = [statistics.fmean(segments) for segments in group.values()]
    return r.rewards[s] - statistics.fmean(rest or own)


def raw_reward(r: Rollout, s: int) -> float:
    return r.rewards[s]


def on_tokens(rule: Callable[[Rollout, int], float]) -> Callable[[Any, Rollout], list[float]]:
    def reference(args: Any, r: Rollout) -> list[float]:
        return [rule(r, s) * m for s, mask in enumerate(r.masks) for m in mask]

    return reference


def penalty(args: Any, r: Rollout, s: int, t: int) -> float:
    if not args.kl_coef:
        return 0.0
    return args.kl_coef * kl_reference(r.log_probs[s][t], r.ref_log_probs[s][t], args.kl_loss_type)


def reward_of_token(args: Any, r: Rollout, s: int, t: int) -> float:
    last = max(u for u, m in enumerate(r.masks[s]) if m)
    return (r.rewards[s] if t == last else 0.0) - penalty(args, r, s, t)


def whitened_reference(r: Rollout, values: list[float]) -> list[float]:
    mask = [m for row in r.masks for m in row]
    trained = [v for v, m in zip(values, mask, strict=True) if m]
    mean = math.fsum(trained) / len(trained)
    variance = math.fsum((v - mean) ** 2 for v in trained) / (len(trained) - 1)
    return [(v - mean) / math.sqrt(variance + 1e-8) * m for v, m in zip(values, mask, strict=True)]


def discounted_reference(args: Any, r: Rollout) -> list[float]:
    found: list[float] = []
    for s, mask in enumerate(r.masks):
        row, running = [0.0] * len(mask), 0.0
        for t in reversed(range(len(mask))):
            if mask[t]:
                running = reward_of_token(args, r, s, t) + args.gamma * running
                row[t] = running
        found += row
    return whitened_reference(r, found)


def baseline_reference(args: Any, r: Rollout) -> list[float]:
    values = [
        (centred_reward(r, s) - penalty(args, r, s, t)) * m
        for s, mask in enumerate(r.masks)
        for t, m in enumerate(mask)
    ]
    return whitened_reference(r, values)


def gae_reference(args: Any, r: Rollout) -> list[float]:
    found: list[float] = []
    for s, mask in enumerate(r.masks):
        row, running, following = [0.0] * len(mask), 0.0, 0.0
        for t in reversed(range(len(mask))):
            if mask[t]:
                surprise = reward_of_token(args, r, s, t) + args.gamma * following - r.values[s][t]
                running = surprise + args.gamma * args.lambd * running
                row[t], following = running, r.values[s][t]
        found += row
    return found


CASES: dict[str, tuple[Any, dict[str, Any], Callable[[Any, Rollout], list[float]]]] = {
    "grpo": (grpo, {}, on_tokens(standardised_reward)),
    "grpo without std": (grpo, {"disable_grpo_std_normalization": True}, on_tokens(centred_reward)),
    "grpo raw": (grpo, {"disable_rewards_normalization": True}, on_tokens(raw_reward)),
    "dr_grpo": (dr_grpo, {}, on_tokens(centred_reward)),
    "rloo": (rloo, {}, on_tokens(left_out_reward)),
    "rloo raw": (rloo, {"disable_rewards_normalization": True}, on_tokens(raw_reward)),
    "reinforce_plus_plus": (reinforce_plus_plus, {}, discounted_reference),
    "reinforce_plus_plus discounted": (reinforce_plus_plus, {"gamma": 0.9}, discounted_reference),
    "reinforce_plus_plus with kl": (reinforce_plus_plus, {"kl_coef": 0.2, "kl_loss_type": "k2"}, discounted_reference),
    "reinforce_plus_plus_baseline": (reinforce_plus_plus_baseline, {}, baseline_reference),
    "reinforce_plus_plus_baseline with kl": (reinforce_plus_plus_baseline, {"kl_coef": 0.2}, baseline_reference),
    "ppo": (ppo, {}, gae_reference),
    "ppo discounted": (ppo, {"gamma": 0.97, "lambd": 0.9}, gae_reference),
    "ppo without bootstrapping": (ppo, {"gamma": 0.0, "lambd": 0.5}, gae_reference),
    "ppo with kl": (ppo, {"lambd": 0.8, "kl_coef": 0.1, "kl_loss_type": "k3"}, gae_reference),
    "grpo whitened": (
        grpo,
        {"normalize_advantages": True},
        lambda args, r: whitened_reference(r, on_tokens(standardised_reward)(args, r)),
    ),
    "ppo whitened": (
        ppo,
        {"normalize_advantages": True, "lambd": 0.9},
        lambda args, r: whitened_reference(r, gae_reference(args, r)),
    ),
    "reinforce_plus_plus is whitened once": (reinforce_plus_plus, {"normalize_advantages": True}, discounted_reference),
}


@pytest.mark.parametrize("case", CASES)
def test_advantages_equal_the_papers_formulas(case: str) -> None:
    estimator, options, reference = CASES[case]
    args = arguments(**options)
    for seed, segments in [*((seed, 1) for seed in range(5)), *((seed, 4) for seed in range(5))]:
        r = rollout(seed, segments=segments)
        found = estimator(args, inputs_of(r)).advantages
        assert found.tolist() == pytest.approx(reference(args, r), rel=1e-11, abs=1e-12)
        assert not found[inputs_of(r).loss_mask == 0].any()


def test_returns_of_a_critic_are_advantages_before_whitening_plus_values() -> None:
    for options in ({}, {"normalize_advantages": True}):
        args = arguments(lambd=0.9, gamma=0.99, **options)
        r = rollout(1)
        expected = [a + v for a, v in zip(gae_reference(args, r), [v for row in r.values for v in row], strict=True)]
        assert ppo(args, inputs_of(r)).returns.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert grpo(arguments(), inputs_of(rollout(1))).returns is None


def test_without_discount_a_perfect_critic_leaves_no_advantage() -> None:
    r = rollout(2)
    r.values = [[reward] * len(mask) for reward, mask in zip(r.rewards, r.masks, strict=True)]
    assert ppo(arguments(), inputs_of(r)).advantages.abs().max() < 1e-13


def test_long_samples_sum_exactly_like_a_loop() -> None:
    owner = torch.tensor([0] * 1000 + [1] * 1 + [2] * 513)
    values = torch.randn(len(owner), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, running = [0.0] * len(owner), 0.0
    for t in reversed(range(len(owner))):
        same = t + 1 < len(owner) and bool(owner[t + 1] == owner[t])
        running = values[t].item() + 0.99 * running * same
        expected[t] = running
    assert tokens.discounted_sums(values, owner, 0.99).tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)


ESTIMATORS = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "ppo": ppo,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_order_of_samples_and_groups_does_not_matter(name: str) -> None:
    r = rollout(3, segments=3)
    args = arguments(kl_coef=0.1)
    plain = ESTIMATORS[name](args, inputs_of(r)).advantages.split([len(mask) for mask in r.masks])
    order = list(range(len(r.rewards)))
    random.Random(0).shuffle(order)
    renamed = {old: new for new, old in enumerate(dict.fromkeys(r.groups[i] for i in order))}
    columns = {name: [getattr(r, name)[i] for i in order] for name in ("masks", "log_probs", "ref_log_probs", "values")}
    owners = [r.trajectories[i] for i in order]
    trajectories = [list(dict.fromkeys(owners)).index(owner) for owner in owners]
    groups = [renamed[r.groups[i]] for i in order]
    mixed = Rollout([r.rewards[i] for i in order], groups, **columns, trajectories=trajectories)
    found = ESTIMATORS[name](args, inputs_of(mixed)).advantages
    assert torch.allclose(found, torch.cat([plain[i] for i in order]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("reward", [0.1, 1.0, -1 / 3, 1e9])
@pytest.mark.parametrize("segments", [1, 3])
def test_a_group_without_spread_has_exactly_no_advantage(name: str, reward: float, segments: int) -> None:
    r = Rollout([reward] * 3 + [0.7] * 7, [0] * 3 + [1] * 7, [[1, 1]] * 10)
    r.trajectories = list(range(10)) if segments == 1 else [0, 0, 1, *(2 + n // 3 for n in range(7))]
    inputs = inputs_of(r, log_probs=None, ref_log_probs=None, values=None)
    found = ESTIMATORS[name](arguments(), inputs).advantages
    assert found.tolist() == [0.0] * 20
    assert sum([0.1] * 3) / 3 != 0.1  # so the plain formula would not do


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_group_of_one_has_no_advantage(name: str) -> None:
    found = ESTIMATORS[name](arguments(), inputs_of(Rollout([3.0], [0], [[1, 1]]), values=None)).advantages
    assert found.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_how_many_segments_a_trajectory_has_changes_no_advantage(name: str) -> None:
    rewards = [1.0, 0.0, 0.0, 0.25]
    alone = ESTIMATORS[name](arguments(), inputs_of(Rollout(rewards, [0] * 4, [[1]] * 4), values=None)).advantages
    owners = [0, 1, 1, 1, 2, 3, 3]
    r = Rollout([rewards[t] for t in owners], [0] * 7, [[1]] * 7, trajectories=owners)
    assert torch.equal(ESTIMATORS[name](arguments(), inputs_of(r, values=None)).advantages, alone[owners])
    counted = inputs_of(r, values=None, trajectory_index=None)  # the samples as units
    assert not torch.allclose(ESTIMATORS[name](arguments(), counted).advantages, alone[owners], rtol=0.05)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_final_rewards_are_not_normalised_again(name: str) -> None:
    r = rollout(4)
    found = ESTIMATORS[name](arguments(), inputs_of(r, rewards_are_final=True)).advantages
    assert found.tolist() == on_tokens(raw_reward)(None, r)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_rollout_without_trained_tokens_gives_zeros(name: str) -> None:
    r = Rollout([1.0, 2.0], [0, 0], [[0, 0], [0]], [[0.0, 0.0], [0.0]], [[0.0, 0.0], [0.0]], [[0.0, 0.0], [0.0]])
    assert ESTIMATORS[name](arguments(normalize_advantages=True), inputs_of(r)).advantages.tolist() == [0.0] * 3


def test_only_what_is_read_is_asked_for() -> None:
    penalised = {"old_log_probs", "ref_log_probs"}
    for estimator in (grpo, dr_grpo, rloo):
        assert what_reads(estimator, arguments(kl_coef=0.1)) == set()
    for estimator in (reinforce_plus_plus, reinforce_plus_plus_baseline):
        assert what_reads(estimator, arguments()) == set()
        assert what_reads(estimator, arguments(kl_coef=0.1)) == penalised
    assert what_reads(ppo, arguments()) == {"values"}
    assert what_reads(ppo, arguments(kl_coef=0.1)) == penalised | {"values"}


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo"])
def test_a_kl_penalty_without_log_probs_is_an_error(name: str) -> None:
    for missing in ("log_probs", "ref_log_probs"):
        with pytest.raises(ArgumentError, match="KL divergence from the reference model needs log-probs"):
            ESTIMATORS[name](arguments(kl_coef=0.1), inputs_of(rollout(0), **{missing: None}))


def test_ppo_without_a_critic_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="values of a critic"):
        ppo(arguments(), inputs_of(rollout(0), values=None))


FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "std of all rewards": (grpo_file, "standardised", lambda r, g, t: centred(r, g, t) / (r.std() + 1e-6), "grpo"),
    "segments counted as trajectories": (grpo_file, "standardised", lambda r, g, t: standardised(r, g), "grpo"),
    "the next sample's value after the end": (
        *(tokens, "following", lambda v, o, d=1: torch.cat([v[d:], torch.zeros(d).double()])),
        "ppo",
    ),
    "reward at every token": (
        *(tokens, "token_rewards", lambda args, inputs, owner: inputs.rewards[owner]),
        "reinforce_plus_plus",
    ),
    "no whitening": (tokens, "whitened", lambda values: values, "reinforce_plus_plus_baseline"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong, case = FAULTS[fault]
    estimator, options, reference = CASES[case]
    args: SimpleNamespace = arguments(**options)
    monkeypatch.setattr(where, name, wrong)
    r = rollout(0, segments=4)
    found = estimator(args, inputs_of(r)).advantages.tolist()
    assert found != pytest.approx(reference(args, r), rel=1e-6, abs=1e-6)


def test_every_token_of_long_responses_gets_the_number_of_its_sample() -> None:
    lengths = torch.tensor([0, 40_000, 3, 0, 32_768, 70_000, 1, 0])
    owner = torch.arange(8).repeat_interleave(lengths)
    mask = torch.ones(len(owner), dtype=torch.float64)
    mask[::7] = 0
    values = torch.arange(8, dtype=torch.float64) - 3.5
    inputs = AdvantageInputs(values, torch.zeros(8, dtype=torch.int64), lengths, mask, owner)
    found = tokens.of_samples(SimpleNamespace(normalize_advantages=False), inputs, values).advantages
    assert torch.equal(found, torch.where(mask > 0, values[owner], 0.0))
