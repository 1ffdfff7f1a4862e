"""Off-policy corrections: weights and metrics equal their definitions, and carry no gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from policy_cases import arguments, loss_inputs, rows, weight_reference, weights_of

from slime_core.errors import ArgumentError
from slime_losses import importance
from slime_losses.policy import policy_loss

RULES = ("tis", "icepop", "sequence_tis", "geometric_mask")


def weigh(rule: str, args: Any, inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return getattr(importance, rule)(args, inputs)


@pytest.mark.parametrize("rule", RULES)
def test_weights_equal_the_definition(rule: str) -> None:
    cut = 0
    for seed in range(4):
        batch = rows(seed)
        args = arguments(use_tis=True, tis_clip=1.1, tis_clip_low=0.8, rule=rule)
        inputs = loss_inputs(batch, weights_of(batch, "sample"))
        weights, metrics = weigh(rule, args, inputs)
        expected = [
            weight_reference(args, row, t) if any(row.mask) else 0.0 for row in batch for t in range(len(row.mask))
        ]
        trained = inputs.loss_mask > 0
        wanted = [weight for weight, kept in zip(expected, trained.tolist(), strict=True) if kept]
        assert weights[trained].tolist() == pytest.approx(wanted, rel=1e-12)
        assert not weights.requires_grad
        cut += float(metrics["tis_clipfrac"]) > 0
    assert cut > 0


def test_metrics_equal_the_definition() -> None:
    batch = rows(0)
    shares = weights_of(batch, "token")
    _, metrics = importance.tis(arguments(tis_clip=1.1, tis_clip_low=0.8), loss_inputs(batch, shares))
    expected = {"tis": 0.0, "tis_abs": 0.0, "tis_clipfrac": 0.0}
    for row, share in zip(batch, shares, strict=True):
        for t, trained in enumerate(row.mask):
            ratio = math.exp(row.columns["old_log_probs"][t] - row.columns["rollout_log_probs"][t])
            expected["tis"] += trained * share * ratio
            expected["tis_abs"] += trained * share * abs(ratio - 1)
            expected["tis_clipfrac"] += trained * share * (not 0.8 <= ratio <= 1.1)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_an_engine_that_agrees_changes_nothing(rule: str) -> None:
    batch = rows(1)
    for row in batch:
        row.columns["rollout_log_probs"] = row.columns["old_log_probs"]
    weights = weights_of(batch, "sample")
    corrected = policy_loss(arguments(use_tis=True), loss_inputs(batch, weights), getattr(importance, rule))
    plain = policy_loss(arguments(), loss_inputs(batch, weights))
    assert torch.equal(corrected.loss, plain.loss)
    assert corrected.metrics["tis_clipfrac"].item() == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_in_the_first_step_the_present_log_probs_are_the_old_ones(rule: str) -> None:
    batch = rows(2)
    weights = weights_of(batch, "sample")
    first = loss_inputs(batch, weights, old_log_probs=None)
    same = loss_inputs(batch, weights, old_log_probs=first.log_probs.detach())
    args = arguments(tis_clip=1.2)
    assert torch.equal(weigh(rule, args, first)[0], weigh(rule, args, same)[0])
    assert not weigh(rule, args, first)[0].requires_grad


def test_without_another_choice_use_tis_means_tis() -> None:
    batch = rows(3)
    weights = weights_of(batch, "sample")
    args = arguments(use_tis=True, tis_clip=1.1)
    chosen = policy_loss(args, loss_inputs(batch, weights), importance.tis)
    assert torch.equal(policy_loss(args, loss_inputs(batch, weights)).loss, chosen.loss)
    assert not torch.equal(policy_loss(arguments(), loss_inputs(batch, weights)).loss, chosen.loss)


@pytest.mark.parametrize("rule", RULES)
def test_missing_engine_log_probs_are_an_error(rule: str) -> None:
    batch = rows(0)
    with pytest.raises(ArgumentError, match="no rollout_log_probs"):
        weigh(rule, arguments(), loss_inputs(batch, weights_of(batch, "sample"), rollout_log_probs=None))
