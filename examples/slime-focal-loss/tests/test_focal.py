"""The formula, its gradient, and the limits in which it must agree with others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from slime_focal_loss.focal import focal_loss

from slime_core.contracts.loss import LossInputs, Reduce
from slime_core.testing import check_distribution

PROBABILITIES = [0.001, 0.2, 0.5, 0.9, 0.999]


def run(probabilities: list[float], gamma: float, weights: list[float] | None = None):
    """(outputs, gradient by log-prob)"""
    log_probs = torch.tensor(probabilities, dtype=torch.float64).log().requires_grad_()
    count = len(probabilities)
    reduce = Reduce(torch.tensor(weights or [1 / count] * count, dtype=torch.float64))
    inputs = LossInputs(
        log_probs=log_probs,
        loss_mask=torch.ones_like(log_probs),
        sample_index=torch.zeros(count, dtype=torch.int64),
        reduce=reduce,
        measured=reduce,
    )
    outputs = focal_loss(SimpleNamespace(focal_gamma=gamma), inputs)
    outputs.loss.backward()
    return outputs, log_probs.grad


@pytest.mark.parametrize("gamma", ["0", "0.5", "2"])
def test_the_package_keeps_its_contracts(gamma):
    check_distribution("slime-focal-loss", options=["--focal-gamma", gamma])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_loss_and_gradient_are_those_of_the_paper(gamma):
    p = torch.tensor(PROBABILITIES, dtype=torch.float64)
    outputs, gradient = run(PROBABILITIES, gamma)
    torch.testing.assert_close(outputs.loss, (-((1 - p) ** gamma) * p.log()).mean())
    # d/dlog p of -(1-p)^γ log p, with dp/dlog p = p
    by_hand = gamma * p * (1 - p) ** (gamma - 1) * p.log() - (1 - p) ** gamma
    torch.testing.assert_close(gradient, by_hand / len(p))


def test_gamma_0_is_the_negative_log_likelihood_to_the_last_bit():
    outputs, gradient = run([*PROBABILITIES, 1.0], 0.0)
    log_probs = torch.tensor([*PROBABILITIES, 1.0], dtype=torch.float64).log()
    assert outputs.loss.item() == (-log_probs / 6).sum().item() == outputs.metrics["nll"].item()
    assert gradient.tolist() == [-1 / 6] * 6


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_a_token_predicted_with_certainty_costs_nothing_and_keeps_the_gradient_finite(gamma):
    outputs, gradient = run([1.0, 0.5], gamma)
    alone, _ = run([0.5], gamma)
    assert outputs.loss.item() == pytest.approx(alone.loss.item() / 2)
    assert gradient.isfinite().all()
    assert abs(gradient[0]) < 1e-30


def test_a_larger_gamma_moves_weight_to_the_tokens_that_are_predicted_badly():
    shares = []
    for gamma in (0.0, 1.0, 3.0):
        _, gradient = run([0.1, 0.9], gamma)
        shares.append((gradient[0] / gradient.sum()).item())
    assert shares == sorted(shares)
    assert shares[0] == 0.5
    assert shares[-1] > 0.95


def test_tokens_that_reduce_gives_no_weight_do_not_count():
    outputs, gradient = run([0.1, 0.9], 2.0, weights=[0.0, 1.0])
    alone, _ = run([0.9], 2.0)
    assert outputs.loss.item() == alone.loss.item()
    assert gradient[0] == 0
