"""The faster norms are the models' own norms."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from slime_core.tensors.rms_norm import rms_norm
from slime_torch.rms_norm import speed_up_norms


def test_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), expected)


@pytest.mark.parametrize(("architecture", "norms"), [("llama", 5), ("qwen3", 9), ("gemma2", 9)])
def test_all_norms_of_a_model_are_exchanged_and_give_the_same(
    tiny: SimpleNamespace, architecture: str, norms: int
) -> None:
    model = tiny.model(architecture, dtype=torch.float32)
    faster = copy.deepcopy(model)
    assert speed_up_norms(faster) == norms
    ids = torch.arange(1, 12)[None]
    torch.testing.assert_close(faster(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_copied_model_uses_its_own_weights(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama")
    speed_up_norms(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.model.norm.weight.zero_()
    ids = torch.arange(1, 6)[None]
    assert not copied(ids).logits.any()
    assert model(ids).logits.any()


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs() * self.weight

    assert speed_up_norms(torch.nn.Sequential(OddRMSNorm())) == 0
