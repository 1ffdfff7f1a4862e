"""The gated layers that keep less are the models' own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from slime_core.tensors.swiglu import swiglu
from slime_torch.gated_layers import keep_less


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


def test_what_is_computed_again_gives_the_same_gradient_bit_for_bit(tiny: SimpleNamespace) -> None:
    keeping = tiny.model("llama", dtype=torch.float32)
    again = copy.deepcopy(keeping)
    keep_less(keeping, checkpointing=True)
    keep_less(again)
    for model in (keeping, again):
        model(torch.arange(1, 12)[None]).logits.square().mean().backward()
    for (name, one), other in zip(keeping.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad), name


def test_a_layer_that_computes_something_else_is_left_alone() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4) for _ in range(3))
            self.act_fn = torch.nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))

    assert keep_less(Odd()) == 0
