"""value_loss equals PPO's clipped squared error, computed token by token."""

from __future__ import annotations

import pytest
import torch
from policy_cases import arguments, loss_inputs, rows, weights_of

from slime_core.contracts.loss import may_skip_zero_advantage, what_reads
from slime_core.errors import ArgumentError
from slime_losses.value import value_loss


@pytest.mark.parametrize("mean", ["sample", "token", "constant"])
@pytest.mark.parametrize("clip", [0.0, 0.2, 10.0])
def test_the_loss_equals_the_formula(clip: float, mean: str) -> None:
    for seed in range(3):
        batch = rows(seed)
        weights = weights_of(batch, mean)
        inputs = loss_inputs(batch, weights)
        inputs = loss_inputs(batch, weights, values=inputs.log_probs)
        expected = clipped = 0.0
        for row, weight in zip(batch, weights, strict=True):
            for t, trained in enumerate(row.mask):
                v, old, target = row.log_probs[t], row.columns["old_values"][t], row.columns["returns"][t]
                limited = min(max(v, old - clip), old + clip)
                expected += trained * weight * max((v - target) ** 2, (limited - target) ** 2)
                clipped += trained * weight * (abs(v - old) > clip)
        outputs = value_loss(arguments(value_clip=clip), inputs)
        assert outputs.loss.item() == pytest.approx(expected, rel=1e-12)
        assert outputs.metrics["value_loss"].item() == pytest.approx(expected, rel=1e-12)
        assert outputs.metrics["value_clipfrac"].item() == pytest.approx(clipped, rel=1e-12)


def test_gradients_equal_differences() -> None:
    batch = rows(7)
    inputs = loss_inputs(batch, weights_of(batch, "sample"))
    args = arguments(value_clip=0.5)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return value_loss(args, loss_inputs(batch, weights_of(batch, "sample"), values=values)).loss

    assert torch.autograd.gradcheck(loss, inputs.log_probs.detach().requires_grad_())


def test_in_the_first_step_it_is_the_plain_squared_error() -> None:
    batch = rows(8)
    weights = weights_of(batch, "sample")
    values = loss_inputs(batch, weights).log_probs
    inputs = loss_inputs(batch, weights, values=values, old_values=None)
    outputs = value_loss(arguments(), inputs)
    assert torch.equal(outputs.loss, inputs.reduce((values - inputs.returns) ** 2))
    (found,) = torch.autograd.grad(outputs.loss, values)
    assert torch.allclose(found, 2 * (values - inputs.returns).detach() * inputs.reduce.weights, rtol=1e-14)
    assert outputs.metrics["value_clipfrac"].item() == 0.0


def test_it_needs_every_sample_and_says_what_is_missing() -> None:
    assert what_reads(value_loss, arguments()) == {"values", "returns"}
    assert not may_skip_zero_advantage(value_loss, arguments())
    batch = rows(0)
    with pytest.raises(ArgumentError, match="--advantage-estimator ppo"):
        value_loss(arguments(), loss_inputs(batch, weights_of(batch, "sample")))
