"""Trajectories count once, however many segments they have: loss and every gradient equal what plain Python makes of the
log-probs that transformers computes sample by sample."""

from __future__ import annotations

import copy
import math
import random
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_core.training.signals import advantage_inputs, columns_of
from slime_losses.advantages.dr_grpo import dr_grpo
from slime_losses.advantages.grpo import grpo
from slime_losses.advantages.rloo import rloo
from slime_losses.arguments import AdvantageArguments, OffPolicyArguments, PolicyArguments
from slime_losses.policy import policy_loss

GROUPS = [
    (4, [[[1, 1, 1]], [[1, 0, 0, 1, 1], [1], [0, 1]], [[0, 0], [1, 1, 0, 1]]]),
    (3, [[[1] * 7, [0, 0, 1], [1, 0, 1, 0, 1], [1]], [[0, 0, 0]], [[0], [0, 0]], [[1, 1], [1, 0]]]),
]
"""Per group the length of its prompt and its trajectories: the loss masks of their segments. Tokens of tools stand inside of
responses, and some samples, and whole trajectories, train nothing."""

LIMIT = 50
LOW, HIGH = 0.8, 1.25
ESTIMATORS = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def make_groups() -> list[list[Sample]]:
    """The samples of `GROUPS`, with rewards that differ within trajectories too. A segment's prompt is the whole segment before
    it or the group's."""
    draw = random.Random(1)
    groups, index = [], 0
    for number, (length, trajectories) in enumerate(GROUPS):
        prompt = [draw.randrange(250) for _ in range(length)]
        group = []
        for masks in trajectories:
            before = prompt
            for mask in masks:
                tokens = [*before, *(draw.randrange(250) for _ in mask)]
                group.append(
                    Sample(
                        group_index=number,
                        index=index,
                        rollout_id=index if len(masks) > 1 else None,
                        tokens=tokens,
                        response_length=len(mask),
                        loss_mask=list(mask),
                        reward=draw.choice([0.0, 1.0, draw.gauss(0, 1)]),
                    )
                )
                before = draw.choice([prompt, tokens])
            index += 1
        groups.append(group)
    return groups


def trajectories_of(groups: list[list[Sample]]) -> list[list[Sample]]:
    """The segments of each trajectory, read from `GROUPS`."""
    samples = iter([sample for group in groups for sample in group])
    return [[next(samples) for _ in masks] for _, trajectories in GROUPS for masks in trajectories]


def expected_advantage(estimator: str, sample: Sample, groups: list[list[Sample]]) -> float:
    """From the formulas of docs/losses.md."""
    group = [t for t in trajectories_of(groups) if t[0].group_index == sample.group_index]
    means = [statistics.fmean(float(s.reward) for s in t) for t in group]
    own = next(n for n, t in enumerate(group) if any(s is sample for s in t))
    others = means[:own] + means[own + 1 :]
    centre = statistics.fmean(others if estimator == "rloo" else means)
    spread = [statistics.fmean((float(s.reward) - statistics.fmean(means)) ** 2 for s in t) for t in group]
    std = math.sqrt(math.fsum(spread) / (len(group) - 1)) + 1e-6
    return (float(sample.reward) - centre) / (std if estimator == "grpo" else 1.0)


def old_log_prob(sample: Sample, place: int) -> float:
    """Not what the model says, so that ratios differ from 1 on both sides of the clip range."""
    return -5.5 - 0.3 * ((3 * place + len(sample.tokens)) % 5 - 2)


def expected(
    model: Any, groups: list[list[Sample]], estimator: str, mean: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients from the definitions: PPO's clipped objective of each token, and the mean that `mean` names."""
    model = copy.deepcopy(model)
    trajectories = trajectories_of(groups)
    every = sum(sum(s.trained_mask) for t in trajectories for s in t)
    total = torch.zeros((), dtype=torch.float64)
    for segments in trajectories:
        trained = sum(sum(s.trained_mask) for s in segments)
        part = torch.zeros((), dtype=torch.float64)
        for sample in segments:
            rows = torch.log_softmax(model(torch.tensor([sample.tokens]), use_cache=False).logits[0], -1)
            first = len(sample.tokens) - sample.response_length
            advantage = expected_advantage(estimator, sample, groups)
            for place, flag in enumerate(sample.loss_mask or []):
                if flag:
                    log_prob = rows[first + place - 1, sample.tokens[first + place]]
                    ratio = (log_prob - old_log_prob(sample, place)).exp()
                    part = part - torch.minimum(ratio * advantage, ratio.clamp(LOW, HIGH) * advantage)
        divisor = {"sample": len(trajectories) * trained, "token": every, "constant": len(trajectories) * LIMIT}[mean]
        total = total + part / divisor if trained else total
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters()}


def check(tiny: SimpleNamespace, estimator: str, mean: Any, **cut: Any) -> dict[str, float]:
    """One step of rate 0 through the estimator, the loss and the torch backend."""
    groups = make_groups()
    samples = [sample for group in groups for sample in group]
    model = tiny.model("qwen3")
    with tiny.float64():
        wanted = expected(model, groups, estimator, mean)
        defaults = [c().model_dump() for c in (PolicyArguments, AdvantageArguments, OffPolicyArguments)]
        options = {name: value for found in defaults for name, value in found.items()}
        backend = tiny.backend(
            model, policy_loss, lr=0.0, **{**options, "eps_clip": 1 - LOW, "eps_clip_high": HIGH - 1}
        )
        inputs = advantage_inputs(groups, [float(s.reward) for s in samples], False, {})
        columns = columns_of(ESTIMATORS[estimator](backend.args, inputs), samples)
        columns["old_log_probs"] = [[old_log_prob(s, place) for place in range(s.response_length)] for s in samples]
        batch = make_train_batch(samples, mean=mean, constant=LIMIT, columns=columns, **cut)
        metrics = backend.train_step(batch)
    tiny.assert_equal_training(metrics["loss"], model, *wanted)
    return metrics


@pytest.mark.parametrize("mean", ["sample", "token", "constant"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loss_and_gradients_equal_the_definitions(tiny: SimpleNamespace, estimator: str, mean: str) -> None:
    metrics = check(tiny, estimator, mean, micro_batch_size=4)
    assert 0 < metrics["pg_clipfrac"] < 1


@pytest.mark.parametrize(
    "cut", [{"micro_batch_size": 1}, {"max_tokens": 30}, {"max_tokens": 40, "share_prompts": True}], ids=str
)
def test_segments_may_lie_in_different_micro_batches(tiny: SimpleNamespace, cut: dict[str, Any]) -> None:
    check(tiny, "grpo", "sample", **cut)


def test_the_check_sees_segments_that_count_as_trajectories(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("slime_core.training.batches", "slime_core.training.signals"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.trajectory_numbers", lambda samples: list(range(len(samples))))
            with pytest.raises(AssertionError):
                check(tiny, "grpo", "sample", micro_batch_size=4)
