"""Products of all experts at once: what comes out, and every gradient, is that of one expert after the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch_cases import GROUPED, make_backend, make_groups, make_model

from slime_core.training.batches import make_train_batch
from slime_torch.experts import group_experts

CPU = torch.device("cpu")
FAMILIES = {"qwen3_moe": 2, "glm4_moe": 1}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_step_has_the_gradients_of_one_expert_after_the_other(architecture: str) -> None:
    model = make_model(architecture, torch.float32, num_experts_per_tok=3)
    plain, grouped = make_backend(copy.deepcopy(model)), make_backend(model)
    assert group_experts(grouped.model, CPU) == FAMILIES[architecture]
    batch = make_train_batch(make_groups(GROUPED), micro_batch_size=3, share_prompts=True)
    expected, found = dict(plain.gradients(batch)), dict(grouped.gradients(batch))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert list(grouped.log_probs(batch)[0]) == pytest.approx(list(plain.log_probs(batch)[0]), abs=1e-5)


def test_weights_are_rounded_once_for_a_step_and_its_micro_batches_add_to_each_other() -> None:
    model = make_model("qwen3_moe", torch.float32)
    options = {"bf16": True, "lr": 0.1, "optimizer": "sgd"}
    plain, grouped = make_backend(copy.deepcopy(model), **options), make_backend(model, **options)
    assert group_experts(plain.model, CPU) == group_experts(grouped.model, CPU, grouped._rounded) == 2
    batch = make_train_batch(make_groups(GROUPED), micro_batch_size=3, share_prompts=True)
    assert len(batch.micro_batches) > 2
    expected, found = dict(plain.gradients(batch)), dict(grouped.gradients(batch))
    for name, gradient in expected.items():
        assert found[name].equal(gradient), name
    for _ in range(2):
        plain.train_step(batch)
        grouped.train_step(batch)
    for (name, weight), other in zip(plain.model.named_parameters(), grouped.model.parameters(), strict=True):
        assert weight.equal(other), name


def experts_of(model: Any) -> Any:
    return model.model.layers[0].mlp.experts


def test_within_autocast_products_are_rounded_once_and_an_expert_without_tokens_has_no_gradient() -> None:
    model = make_model("qwen3_moe", torch.float32)
    random = torch.Generator().manual_seed(0)
    hidden, towards = torch.randn(2, 50, 32, generator=random)
    chosen = torch.rand(50, 3, generator=random).topk(2).indices
    share = torch.rand(50, 2, generator=random).requires_grad_()
    found: list[list[torch.Tensor]] = []
    for _ in range(2):
        experts, given = experts_of(model), hidden.clone().requires_grad_()
        leaves = (given, share, experts.gate_up_proj, experts.down_proj)
        with torch.autocast("cpu", torch.bfloat16):
            output = experts(given, chosen, share)
        found.append([output.detach(), *torch.autograd.grad(output, leaves, towards)])
        group_experts(model, CPU)
    for ours, right in zip(found[1], found[0], strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - right).norm() / right.norm() < 0.02
    for gradient in found[1][3:]:
        assert not gradient[3].any()
        assert gradient[:3].flatten(1).any(1).all()


def test_a_copied_model_computes_with_its_own_weights() -> None:
    model = make_model("qwen3_moe", torch.float32)
    group_experts(model, CPU)
    other = copy.deepcopy(model)
    with torch.no_grad():
        experts_of(other).down_proj.zero_()
    given = torch.ones(1, 32), torch.tensor([[0, 2]]), torch.ones(1, 2)
    assert experts_of(model)(*given).any()
    assert not experts_of(other)(*given).any()


def test_experts_that_compute_something_else_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("qwen3_moe", torch.float32)
    for layer in model.model.layers:
        experts: Any = layer.mlp.experts
        kind = type(experts)

        def forward(self: Any, *given: Any, original: Any = kind.forward) -> Any:
            return 1.01 * original(self, *given)

        experts.__class__ = type("Others", (kind,), {"forward": forward})
    assert group_experts(model, CPU) == 0
    assert "Others) are computed as transformers does it, which is slow: output is 9.9e-03 off" in caplog.text


def test_experts_of_another_layout_stay_as_they_are() -> None:
    model = make_model("qwen3_moe", torch.float32)
    for layer in model.model.layers:
        layer.mlp.experts.has_bias = True
    assert group_experts(model, CPU) == 0
