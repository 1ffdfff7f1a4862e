"""The gated layers that keep less are the models' own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from slime_core.errors import PluginError
from slime_core.tensors import matrix_products
from slime_core.tensors.matrix_products import speed_up_products
from slime_core.tensors.swiglu import swiglu
from slime_torch.gated_layers import keep_less
from slime_torch.model import enable_gradient_checkpointing, prepare
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
        enable_gradient_checkpointing(model)
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


class Gated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4) for _ in range(3))
        self.act_fn = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Added(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


class Clamped(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=16) * self.up_proj(x).clamp(-16, 16))


class ClampedFarAway(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(-1000, 1000))


class Dropping(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(x), 0.5, training=self.training)


@pytest.mark.parametrize(("kind", "found"), [(Gated, 1), (Added, 0), (Clamped, 0), (ClampedFarAway, 0), (Dropping, 0)])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_computes_something_else_is_left_alone(kind: type[Gated], found: int, training: bool) -> None:
    layer = kind().train(training)
    state = torch.get_rng_state()
    assert keep_less(layer) == found
    assert {module.training for module in layer.modules()} == {training}
    assert torch.equal(torch.get_rng_state(), state)


def test_what_an_exchange_changes_is_seen_when_the_model_is_prepared(tiny: SimpleNamespace) -> None:
    def wrong(model: torch.nn.Module) -> None:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = torch.nn.Identity().forward

    with pytest.raises(PluginError, match="log-probabilities differ"):
        prepare(tiny.model("llama", dtype=torch.float32), exchanges=[speed_up_norms, wrong])
