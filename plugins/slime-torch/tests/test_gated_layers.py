"""The gated layers that keep less are the models' own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from slime_core.tensors import matrix_products
from slime_core.tensors.matrix_products import speed_up_products
from slime_core.tensors.swiglu import swiglu
from slime_torch.gated_layers import keep_less
from slime_torch.rms_norm import speed_up_norms


def test_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    torch.testing.assert_close(swiglu(gate, up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize(("architecture", "layers"), [("llama", 2), ("qwen3", 2), ("gemma2", 0)])
def test_a_model_with_such_layers_computes_the_same_and_keeps_less(
    tiny: SimpleNamespace, architecture: str, layers: int
) -> None:
    model = tiny.model(architecture, dtype=torch.float32)
    other = copy.deepcopy(model)
    assert keep_less(other) == layers
    ids, found, kept = torch.arange(1, 12)[None], [], []
    for one in (model, other):
        sizes: dict[int, int] = {}
        note = lambda t, sizes=sizes: (sizes.setdefault(t.data_ptr(), t.numel()), t)[1]  # noqa: E731 - a hook in a line
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = one(ids).logits.square().mean()
        loss.backward()
        found.append({name: p.grad for name, p in one.named_parameters()})
        kept.append(sum(sizes.values()))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert kept[1] < kept[0] if layers else kept[1] == kept[0]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("processor", ["AuthenticAMD avx512f", "GenuineIntel"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_made_again_gives_the_same_gradient_bit_for_bit_and_is_not_kept(
    tiny: SimpleNamespace, architecture: str, processor: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_products, "_processor", lambda: processor)
    monkeypatch.setattr(matrix_products, "LEAST_OPERATIONS", 0)
    for known in (matrix_products.onednn_is_faster, matrix_products._reads_transposed):
        monkeypatch.setattr(matrix_products, known.__name__, known.__wrapped__)
    model = tiny.model(architecture, dtype=torch.float32)
    assert speed_up_norms(model)
    keep_less(model)
    speed_up_products(model)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found, kept = [], []
    for recipe_of in (matrix_products.recipe_of, lambda tensor: None):
        monkeypatch.setattr(matrix_products, "recipe_of", recipe_of)
        sizes: dict[int, int] = {}
        note = lambda t, sizes=sizes: (sizes.setdefault(t.data_ptr(), t.numel()), t)[1]  # noqa: E731 - a hook in a line
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = model(torch.arange(1, 12)[None]).logits.square().mean()
        loss.backward()
        found.append([p.grad for p in model.parameters()])
        kept.append(sum(sizes.values()))
        model.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert kept[0] == kept[1] if checkpointing else kept[0] < kept[1]


def test_a_layer_that_computes_something_else_is_left_alone() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4) for _ in range(3))
            self.act_fn = torch.nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))

    assert keep_less(Odd()) == 0
