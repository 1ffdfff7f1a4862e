"""Which parameters are decayed, and how a gradient is clipped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from slime_torch.optimizer import build_optimizer, clip


@pytest.mark.parametrize(
    ("architecture", "changes"), [("llama_untied", {}), ("cohere", {"use_qk_norm": True}), ("gpt2", {})]
)
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_norms_and_biases_are_not_decayed(
    tiny: SimpleNamespace, name: str, architecture: str, changes: dict[str, bool]
) -> None:
    model = tiny.model(architecture, **changes)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(tiny.args(optimizer=name, lr=0.1, weight_decay=0.5), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        decayed = parameter.ndim >= 2 and "norm" not in parameter_name  # Cohere has one for every head
        expected = before[parameter_name] * (0.95 if decayed else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(("limit", "length"), [(0.0, 5.0), (6.0, 5.0), (1.0, 1.0)])
def test_a_gradient_is_scaled_down_to_the_limit_and_never_up(limit: float, length: float) -> None:
    gradients = [torch.tensor([3.0], dtype=torch.float64), torch.tensor([0.0, 4.0], dtype=torch.float64)]
    clip(gradients, 5.0, limit)
    assert torch.cat(gradients).norm().item() == pytest.approx(length, rel=1e-6)
