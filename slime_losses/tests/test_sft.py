"""sft_loss is the negative log-likelihood under whatever mean the backend chose."""

from __future__ import annotations

import pytest
import torch

from slime_core.contracts.loss import LossInputs, Reduce
from slime_losses.plugin import slime_losses
from slime_losses.sft import sft_loss

LOG_PROBS = torch.tensor([-1.0, -2.0, -6.0], dtype=torch.float64, requires_grad=True)
SAMPLE = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("weights", "mean"),
    [([1 / 3, 1 / 3, 1 / 3], 3.0), ([1 / 4, 1 / 4, 1 / 2], 3.75), ([0.0, 1.0, 0.0], 2.0)],
    ids=["per token", "per sample", "padding weighs nothing"],
)
def test_the_loss_is_the_weighted_negative_log_likelihood(weights: list[float], mean: float) -> None:
    reduce = Reduce(torch.tensor(weights, dtype=torch.float64))
    outputs = sft_loss(None, LossInputs(LOG_PROBS, torch.ones(3), SAMPLE, reduce, measured=reduce))
    assert outputs.loss.item() == pytest.approx(mean)
    (gradient,) = torch.autograd.grad(outputs.loss, LOG_PROBS)
    assert gradient.tolist() == pytest.approx([-w for w in weights])


def test_the_plugin_names_it_without_importing_torch() -> None:
    assert slime_losses()["sft_loss"].target == "slime_losses.sft:sft_loss"
