"""A transformers model computes by a recipe: the layers that it quantises, and no others, with errors between two bounds."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fp8_cases import CASES, RECIPES, error, made, numbers
from torch import nn

from slime_core.contracts.precision import Remembers
from slime_core.errors import ArgumentError
from slime_core.tensors.low_precision import LowPrecisionLinear, remembering, swap_linears, weights_unchanged

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model(**changes: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, **changes})).train()


def step(of: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss on a few tokens, and all gradients."""
    tokens = torch.randint(0, 97, (1, 48), generator=torch.Generator().manual_seed(1))
    of.zero_grad()
    loss = of(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in of.named_parameters()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_linear_layer_has_an_error_between_two_bounds_and_the_others_have_little(name):
    right_loss, right = step(model())
    low = model()
    names = {key for key, _ in low.named_parameters()}
    swapped = swap_linears(low, made(name, fp8_format="e4m3" if name == "mxfp8" else "hybrid"))
    assert len(swapped) == 4 * len(PROJECTIONS)
    assert {key for key, _ in low.named_parameters()} == names
    step(low)
    end_step(low)  # so that delayed scaling has scales
    loss, found = step(low)
    assert loss == pytest.approx(right_loss, rel=0.01)
    assert loss != right_loss
    errors = {key: error(found[key], value) for key, value in right.items()}
    for module in swapped:
        assert 0.06 < errors[f"{module}.weight"] < 0.25, module
    assert max(errors.values()) < 0.35


def end_step(of: Any) -> None:
    for product in remembering(of):
        product.end_step(lambda values: values)


def products(of: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """{layer: (input, weight, gradient of the output)} of one step."""
    found: dict[str, list[torch.Tensor]] = {}

    def watch(name: str, layer: nn.Module) -> None:
        def forward(layer: Any, given: Any, output: torch.Tensor) -> None:
            found[name] = [given[0].detach(), layer.weight.detach()]
            output.register_hook(lambda gradient: found[name].append(gradient.detach()))

        layer.register_forward_hook(forward)

    for name, layer in of.named_modules():
        if type(layer) is nn.Linear and name != "lm_head":
            watch(name, layer)
    step(of)
    return {name: (x[0], w, g[0]) for name, (x, w, g) in found.items()}


def gradients(product: Any, x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    output = product(x, w)
    return (output.detach(), *torch.autograd.grad(output, (x, w), g))


IN_A_MODEL = {
    "e4m3": {"output": (0.03, 0.045), "input": (0.03, 0.045), "weight": (0.014, 0.045)},
    "hybrid": {"output": (0.03, 0.045), "input": (0.048, 0.07), "weight": (0.02, 0.07)},
}
"""Wider than `fp8_cases.BOUNDS`, below for gradients of weights: there errors of tokens that resemble each other cancel."""


@pytest.mark.parametrize(("name", "format"), CASES)
def test_on_its_own_numbers_every_layer_has_errors_between_two_bounds_in_all_three_products(name, format):
    """Without the errors of the layers around it: a product that does not quantise falls below them."""
    recipe = made(name, fp8_format=format)
    for layer, (x, w, g) in products(model()).items():
        product = recipe.linear(f"{layer}.weight")
        gradients(product, x, w, g)
        if isinstance(product, Remembers):
            product.end_step(lambda values: values)
        found, right = gradients(product, x, w, g), gradients(nn.functional.linear, x, w, g)
        for what, ours, exact in zip(("output", "input", "weight"), found, right, strict=True):
            low, high = IN_A_MODEL[format][what]
            assert low < error(ours, exact) < high, f"{what} of {layer}"


def test_what_the_recipe_leaves_out_is_computed_as_before():
    low = model()
    changes = {"first_last_layers_bf16": True, "fp8_modules_to_not_convert": ["o_proj$"]}
    swapped = swap_linears(low, made("blockwise", **changes))
    expected = {f"model.layers.{n}.{part}" for n in (1, 2) for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert expected <= set(swapped)
    assert {type(m) for n, m in low.named_modules() if n in swapped} == {LowPrecisionLinear}
    others = {n for n, m in low.named_modules() if type(m) is nn.Linear}
    assert others >= {
        "lm_head",
        "model.layers.0.mlp.up_proj",
        "model.layers.3.mlp.up_proj",
        "model.layers.1.self_attn.o_proj",
    }
    assert not others & set(swapped)


@pytest.mark.parametrize("name", RECIPES)
def test_a_bias_is_added_in_high_precision(name):
    layer = nn.Sequential(nn.Linear(64, 32))
    weight, bias = layer[0].weight.detach(), layer[0].bias.detach()
    swap_linears(layer, made(name))
    x = torch.randn(5, 64)
    product = made(name).linear("0.weight")
    assert layer(x).equal(product(x, weight) + bias)


def test_a_recipe_that_leaves_everything_out_is_refused():
    with pytest.raises(ArgumentError, match="leaves out every linear layer of the model"):
        swap_linears(model(), made("tensorwise", fp8_modules_to_not_convert=["."]))


def test_the_scales_of_delayed_scaling_are_saved_with_the_model():
    low = model(num_hidden_layers=1)
    swap_linears(low, made("delayed", 1))
    step(low)
    end_step(low)
    state = low.state_dict()
    other = model(num_hidden_layers=1)
    swap_linears(other, made("delayed", 1))
    other.load_state_dict(state)
    assert step(other)[0] == step(low)[0]


@pytest.mark.parametrize("name", RECIPES)
def test_trainer_engine_and_converter_quantise_the_same_weights_to_the_same_numbers(name, tmp_path):
    from safetensors.torch import load_file

    from slime_fp8.convert import to_fp8

    recipe = made(name, first_last_layers_bf16=True, fp8_modules_to_not_convert=["k_proj$"])
    trained = model(tie_word_embeddings=False).bfloat16()
    trained.save_pretrained(tmp_path / "hf")
    done = to_fp8(tmp_path / "hf", tmp_path / "fp8", recipe.weights, recipe.modules)
    weights = {key: value.detach().clone() for key, value in trained.state_dict().items()}
    converted = load_file(tmp_path / "fp8" / "model.safetensors")
    engine: dict[str, torch.Tensor] = {}
    for key, weight in weights.items():
        quantised = recipe.quantises(key, tuple(weight.shape))
        engine |= recipe.stored(key, weight) if quantised else {key: weight}
    assert engine.keys() == converted.keys()
    for key, value in engine.items():
        assert value.view(torch.uint8).equal(converted[key].view(torch.uint8)), key
    swapped = swap_linears(trained, recipe)
    assert {f"{module}.weight" for module in swapped} == set(done.changed)
    if name != "delayed":  # whose trainer has scales of earlier steps
        for module in swapped:
            key = f"{module}.weight"
            operands = trained.get_submodule(module).precision.operands
            assert operands.both("weight", weights[key])[0].restored().equal(recipe.restored(key, converted))


@pytest.mark.parametrize("name", RECIPES)
def test_weights_that_do_not_change_are_quantised_once_and_nothing_else_changes(name, monkeypatch):
    asked = []
    layer, other = (made(name).linear("x.weight") for _ in range(2))
    both = type(layer.operands).both

    def counting(self, role, matrix):
        asked.append((self, role))
        return both(self, role, matrix)

    monkeypatch.setattr(type(layer.operands), "both", counting)
    model = nn.ModuleList([layer])
    results = []
    for kept in (True, False):
        own, weight = (layer if kept else other), numbers(24, 32, seed=1)
        for _ in range(2):
            with weights_unchanged(model) if kept else nullcontext():
                for call in range(3):
                    own.train(call > 0)
                    x, w = numbers(16, 32, seed=call).requires_grad_(), weight.requires_grad_()
                    y = own(x, w)
                    results.append((y.detach(), *torch.autograd.grad(y, (x, w), torch.ones_like(y))))
            if isinstance(own, Remembers):
                own.end_step(lambda values: values)
            weight = weight.detach() * 2
    for ours, right in zip(results[:6], results[6:], strict=True):
        assert all(a.equal(b) for a, b in zip(ours, right, strict=True))
    assert sum(one == (layer.operands, "weight") for one in asked) == 2 * 2, (
        "in each step once in training, once outside"
    )
    assert sum(one == (other.operands, "weight") for one in asked) == 2 * 3
