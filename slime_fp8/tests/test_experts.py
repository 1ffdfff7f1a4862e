"""Experts of transformers compute by a recipe: each of their matrices as the one that a checkpoint has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fp8_cases import CASES, RECIPES, error, made
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from slime_core.contracts.precision import Remembers
from slime_core.errors import ArgumentError
from slime_core.tensors.low_precision import remembering, swap_linears
from slime_core.tensors.low_precision_experts import LowPrecisionExperts

SIZES = {
    "hidden_size": 160,
    "intermediate_size": 96,
    "moe_intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 24}
SIGMOID = {"n_routed_experts": 6, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"num_experts": 6, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"num_experts": 6, "head_dim": 16, "norm_topk_prob": True},
    "glm4_moe": {**SIGMOID, "head_dim": 16},
    "glm4_moe_lite": {**SIGMOID, **LATENT},
    "deepseek_v3": {**SIGMOID, **LATENT},
}
EXPERTS = "model.layers.0.mlp.experts"
EXPERT = ("gate_proj", "up_proj", "down_proj")


def model(family: str = "qwen3_moe", **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {**SIZES, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(family, **settings)
    config._experts_implementation = "eager"  # the one that takes float64
    of_config: Any = AutoModelForCausalLM.from_config
    return of_config(config).double().train()


def step(of: Any, length: int = 40) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a few tokens, and all gradients of their loss."""
    tokens = torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(1))
    of.zero_grad()
    found = of(input_ids=tokens, labels=tokens)
    found.loss.backward()
    return found.logits.detach(), {n: p.grad.clone() for n, p in of.named_parameters() if p.grad is not None}


class Exact:
    """A recipe that rounds nothing."""

    def quantises(self, name: str, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and "_proj" in name and "gate.weight" not in name

    def linear(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        return F.linear


@pytest.mark.parametrize("family", FAMILIES)
def test_without_rounding_experts_are_those_of_transformers(family: str) -> None:
    right, gradients = step(model(family))
    low = model(family)
    recipe: Any = Exact()
    swapped = swap_linears(low, recipe)
    assert any(isinstance(low.get_submodule(name), LowPrecisionExperts) for name in swapped)
    logits, found = step(low)
    assert (logits - right).abs().max() < 1e-12
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # Norms and routers are float32 in transformers.
        assert (found[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name


def by_hand(experts: Any, recipe: Any, name: str, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """One expert after the other, with weights as a checkpoint has them."""
    total = torch.zeros_like(hidden)
    for expert in range(experts.num_experts):
        to = {kind: recipe.linear(f"{name}.{expert}.{kind}.weight") for kind in EXPERT}
        tokens = [token for token in range(len(hidden)) if expert in chosen[token]]
        width = experts.gate_up_proj.shape[1] // 2
        gate = to["gate_proj"](hidden[tokens], experts.gate_up_proj[expert, :width])
        up = to["up_proj"](hidden[tokens], experts.gate_up_proj[expert, width:])
        share = torch.stack([weights[t, chosen[t].tolist().index(expert)] for t in tokens])[:, None]
        down = to["down_proj"](F.silu(gate) * up * share, experts.down_proj[expert])
        total = total.index_add(0, torch.tensor(tokens), down)
    return total


def routed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of 300 tokens, two experts of each, their weights, and the gradient of what comes out."""
    generator = torch.Generator().manual_seed(3)
    hidden, towards = torch.randn(2, 300, 160, generator=generator, dtype=torch.float64)
    chosen = torch.rand(300, 6, generator=generator).topk(2).indices
    weights = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    return hidden.requires_grad_(), chosen, weights.requires_grad_(), towards


@pytest.mark.parametrize("name", RECIPES)
def test_an_expert_s_matrices_are_quantised_apart_and_its_tokens_lie_in_the_order_of_the_row(name: str) -> None:
    recipe = made(name, 2)
    low = model()
    swap_linears(low, recipe)
    experts = low.get_submodule(EXPERTS)
    hidden, chosen, weights, towards = routed()
    leaves = (hidden, weights, experts.gate_up_proj, experts.down_proj)
    outputs = experts(hidden, chosen, weights), by_hand(experts, recipe, EXPERTS, hidden, chosen, weights)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12
    found, right = (torch.autograd.grad(output, leaves, towards) for output in outputs)
    for ours, theirs in zip(found, right, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize(("name", "format"), CASES)
def test_every_expert_has_an_error_between_two_bounds(name: str, format: str) -> None:
    """In its output and in all its gradients: what does not quantise falls below them."""
    plain, low = model(), model()
    swap_linears(low, made(name, 2, fp8_format=format))
    found: list[list[Tensor]] = []
    for of in (plain, low, low):
        experts = of.get_submodule(EXPERTS)
        hidden, chosen, weights, towards = routed()
        output = experts(hidden, chosen, weights)
        gradients = torch.autograd.grad(output, (hidden, weights, experts.gate_up_proj, experts.down_proj), towards)
        (gate, up), down = gradients[2].chunk(2, 1), gradients[3]
        found.append([output.detach(), gradients[0], gradients[1], *gate.unbind(), *up.unbind(), *down.unbind()])
        for product in remembering(of):  # so that delayed scaling has scales
            product.end_step(lambda values: values)
    assert len(found[0]) == 3 + 3 * 6
    for ours, exact in zip(found[2], found[0], strict=True):
        assert 0.03 < error(ours, exact) < 0.12


def test_an_expert_without_tokens_has_no_gradient_and_keeps_the_scales_of_what_it_did_not_see() -> None:
    low = model()
    swap_linears(low, made("delayed", 2))
    experts = low.get_submodule("model.layers.0.mlp.experts")
    hidden = torch.randn(5, 160, dtype=torch.float64) * 1e-3
    chosen = torch.tensor([[0, 1], [2, 1], [0, 4], [5, 4], [0, 1]])
    for _ in range(3):
        output = experts(hidden, chosen, torch.ones(5, 2, dtype=torch.float64))
        output.sum().backward()
        for product in remembering(experts):
            product.end_step(lambda values: values)
    assert output.isfinite().all()
    assert not experts.gate_up_proj.grad[3].any()
    assert experts.gate_up_proj.grad[2].any()
    without, some = (experts.precision[3 * expert].operands.scale.tolist() for expert in (3, 2))
    assert (without[0], without[2]) == (1, 1), "of inputs and gradients that it never had"
    assert without[1] == pytest.approx(448 / experts.gate_up_proj[3].chunk(2)[0].abs().max().item())
    assert min(some) > 1


def test_single_experts_and_projections_can_be_left_out() -> None:
    low = model()
    swapped = swap_linears(low, made("delayed", 2, fp8_modules_to_not_convert=[r"experts\.3\.", "up_proj$"]))
    assert "model.layers.0.mlp.experts" in swapped
    products = list(low.get_submodule("model.layers.0.mlp.experts").precision)
    low_ones = [(n // 3, EXPERT[n % 3]) for n, product in enumerate(products) if isinstance(product, Remembers)]
    assert low_ones == [(e, kind) for e in range(6) if e != 3 for kind in ("gate_proj", "down_proj")]
    assert len(remembering(low)) == 2 * (4 + len(low_ones))


def test_experts_that_are_left_out_are_those_of_transformers() -> None:
    low = model()
    swapped = swap_linears(low, made("blockwise", 2, fp8_modules_to_not_convert=[r"\.experts\."]))
    assert sorted({name.rpartition(".")[2] for name in swapped}) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert not any(isinstance(module, LowPrecisionExperts) for module in low.modules())


@pytest.mark.parametrize(
    "changes", [{"has_bias": True}, {"is_transposed": True}, {"has_gate": False}, {"is_concatenated": False}]
)
def test_experts_that_are_computed_in_another_way_are_refused_by_name(changes: dict[str, bool]) -> None:
    low = model()
    for module in low.modules():
        for key in changes if hasattr(module, "gate_up_proj") else ():
            setattr(module, key, changes[key])
    with pytest.raises(ArgumentError, match=r"4 weights cannot be computed .*layers.0.mlp.experts.gate_up_proj"):
        swap_linears(low, made("blockwise", 2))


def test_a_stack_that_is_no_experts_is_refused_by_name() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Parameter(torch.zeros(3, 8, 8))
            self.down_proj = nn.Linear(8, 8)

    with pytest.raises(ArgumentError, match=r"1 weights cannot be computed .*up_proj"):
        swap_linears(Stack(), made("blockwise", 2))
