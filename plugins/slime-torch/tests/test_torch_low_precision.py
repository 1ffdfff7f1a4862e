"""With FP8 the backend computes what transformers computes with linear layers that quantise, and nothing but training moves the
scales of delayed scaling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.precision import Remembers
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss
from slime_torch.backend import TorchBackend

RECIPES = ["tensorwise", "delayed", "blockwise", "mxfp8"]
LR = 0.02
PLAIN = {"optimizer": "sgd", "lr_decay_style": "constant", "sgd_momentum": 0.0, "weight_decay": 0.0, "lr": LR}
MEMORY = {"fp8_recipe": "delayed", "fp8_amax_history_len": 3, "fp8_amax_compute_algo": "max"}


def by_hand(model: PreTrainedModel, recipe: Any) -> list[Any]:
    """Have transformers' own layers call products of a recipe, and return the products."""
    products = []

    def forward(layer: nn.Linear, product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda given: product(given, layer.weight) + (0 if layer.bias is None else layer.bias)

    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            products.append(recipe.linear(f"{name}.weight"))
            layer.forward = forward(layer, products[-1])
    return products


def one_by_one(model: PreTrainedModel, samples: list[Sample]) -> float:
    """The loss, a mean over trained tokens, from whole logits of single sequences; gradients are left in the model."""
    model.zero_grad()
    count = sum(sum(sample.trained_mask) for sample in samples)
    total = 0.0
    for sample in samples:
        prompt = len(sample.tokens) - sample.response_length
        trained = [prompt + j for j, flag in enumerate(sample.trained_mask) if flag]
        if trained:
            logits = model(input_ids=torch.tensor([sample.tokens[: trained[-1]]]), use_cache=False).logits[0]
            wanted = torch.tensor([sample.tokens[place] for place in trained])
            loss = (
                nn.functional.cross_entropy(logits[[place - 1 for place in trained]], wanted, reduction="sum") / count
            )
            loss.backward()
            total += loss.item()
    return total


@pytest.mark.parametrize("architecture", ["llama_untied", "qwen3"])
@pytest.mark.parametrize(("name", "format"), [*((name, "e4m3") for name in RECIPES), ("delayed", "hybrid")])
def test_every_gradient_of_every_step_is_that_of_transformers_with_layers_swapped_by_hand(
    tiny: SimpleNamespace, name: str, format: str, architecture: str
) -> None:
    model = tiny.model(architecture)
    theirs = copy.deepcopy(model)
    options = {**tiny.fp8, **PLAIN, "fp8_format": format, "fp8_recipe": name}
    samples = tiny.samples(tiny.mixed)
    with tiny.float64():
        backend = tiny.backend(model, **options)
        recipe = tiny.low_precision(name).further["precision_recipe"](backend.args, 2)
        products = by_hand(theirs, recipe)
        assert len(products) == 2 * 7
        plain = one_by_one(copy.deepcopy(tiny.model(architecture)), samples)
        for _ in range(3):
            loss = backend.train_step(make_train_batch(samples, mean="token", micro_batch_size=1))["loss"]
            expected = one_by_one(theirs, samples)
            assert loss == pytest.approx(expected, rel=1e-10)
            assert abs(loss - plain) > 1e-4, "nothing is quantised"
            for (key, ours), (_, right) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
                assert (ours.grad - right.grad).abs().max() <= 1e-10 * right.grad.abs().max(), key
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter -= LR * parameter.grad
            for product in products:
                if isinstance(product, Remembers):
                    product.end_step(lambda values: values)


@pytest.mark.parametrize(
    ("name", "log_probs_agree", "gradients_agree"),
    [("tensorwise", False, False), ("delayed", True, True), ("blockwise", True, False), ("mxfp8", True, False)],
)
def test_what_depends_on_the_samples_of_a_row_is_what_the_guide_says(
    tiny: SimpleNamespace, name: str, log_probs_agree: bool, gradients_agree: bool
) -> None:
    """Scales of a whole matrix see all its tokens; so do blocks along tokens, which gradients of weights are made from."""
    samples = tiny.samples(tiny.mixed)
    with tiny.float64():
        backend = tiny.backend(tiny.model("llama_untied"), **tiny.fp8, **PLAIN, fp8_recipe=name)
        alone, packed = (make_train_batch(samples, mean="token", micro_batch_size=size) for size in (1, len(samples)))
        backend.train_step(alone)  # so that delayed scaling has scales
        log_probs = [
            torch.tensor([x for row in backend.log_probs(batch) for x in row], dtype=torch.float64)
            for batch in (alone, packed)
        ]
        gradients = [dict(backend.gradients(batch)) for batch in (alone, packed)]
        one, other = (
            torch.cat([g.flatten() for n, g in found.items() if n.endswith("proj.weight")]) for found in gradients
        )
    assert bool((log_probs[0] - log_probs[1]).abs().max() < 1e-10) is log_probs_agree
    assert bool((one - other).norm() < 1e-10 * one.norm()) is gradients_agree
    assert (one - other).norm() < 0.3 * one.norm()


def history(backend: TorchBackend) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in backend.model.named_buffers() if ".precision." in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(tiny: SimpleNamespace, steps: int = 2, **options: Any) -> TorchBackend:
    backend: TorchBackend = tiny.backend(tiny.model("llama", dtype=torch.float32), **{**tiny.fp8, "lr": LR, **options})
    for step in range(steps):
        backend.train_step(make_train_batch(tiny.samples(tiny.mixed, seed=step), micro_batch_size=2))
    return backend


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_log_probs_are_bit_for_bit_those_that_the_step_trains_with(
    tiny: SimpleNamespace, name: str, bf16: bool
) -> None:
    seen: list[float] = []

    def watched(args: Any, inputs: LossInputs) -> LossOutputs:
        seen.extend(inputs.log_probs.tolist())
        return sft_loss(args, inputs)

    backend = trained(tiny, fp8_recipe=name, bf16=bf16)
    backend.loss = watched
    samples = tiny.samples(tiny.mixed, seed=7)
    batch = make_train_batch(samples, micro_batch_size=2)
    before = [
        value
        for row, sample in zip(backend.log_probs(batch), samples, strict=True)
        for value, flag in zip(row, sample.trained_mask, strict=True)
        if flag
    ]
    backend.train_step(batch)
    assert seen == before


def test_only_training_moves_scales_and_histories(tiny: SimpleNamespace) -> None:
    backend = trained(tiny, **MEMORY)
    before = history(backend)
    assert len(before) == 2 * 7 * 2
    assert all(buffer.any() for buffer in before.values())
    batch = make_train_batch(tiny.samples(tiny.mixed, seed=5), micro_batch_size=2)
    backend.log_probs(batch)
    backend.evaluate(batch)
    assert list(backend.gradients(batch))
    assert same(history(backend), before)
    backend.train_step(batch)
    assert not same(history(backend), before)


@pytest.mark.parametrize("recipe", [{"fp8_recipe": "blockwise"}, MEMORY], ids=["blockwise", "delayed"])
def test_activations_that_are_computed_again_change_nothing(tiny: SimpleNamespace, recipe: dict[str, Any]) -> None:
    kept, again = (trained(tiny, 3, gradient_checkpointing=flag, **recipe) for flag in (False, True))
    assert same(dict(kept.weights()), dict(again.weights()))
    assert same(history(kept), history(again))


@pytest.mark.parametrize("background", [False, True])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    tiny: SimpleNamespace, tmp_path: Path, background: bool
) -> None:
    def go_on(backend: TorchBackend) -> list[Any]:
        batches = [make_train_batch(tiny.samples(tiny.mixed, seed=seed), micro_batch_size=2) for seed in (8, 9)]
        return [backend.train_step(batch) for batch in batches]

    first = trained(tiny, async_save=background, **MEMORY)
    first.save_state(tmp_path)
    expected = go_on(first)
    assert first.saved()
    second = trained(tiny, 0, **MEMORY)
    second.load_state(tmp_path)
    assert go_on(second) == expected
    assert same(dict(second.weights()), dict(first.weights()))
    assert same(history(second), history(first))


def test_a_state_of_another_recipe_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    trained(tiny, 1, **MEMORY).save_state(tmp_path)
    with pytest.raises(CheckpointError, match="--fp8-recipe that the run was started with"):
        trained(tiny, 0, fp8_recipe="tensorwise").load_state(tmp_path)


@pytest.mark.parametrize("name", ["delayed", "blockwise"])
def test_exports_and_weights_for_an_engine_are_those_of_the_optimizer_under_plain_names(
    tiny: SimpleNamespace, tmp_path: Path, name: str
) -> None:
    backend = trained(tiny, fp8_recipe=name)
    plain = tiny.model("llama", dtype=torch.float32)
    weights = dict(backend.weights())
    assert list(weights) == [key for key, _ in plain.named_parameters()]
    backend.export_hf(tmp_path)
    plain.save_pretrained(tmp_path / "plain")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == load_file(tmp_path / "plain" / "model.safetensors").keys()
    for key, tensor in stored.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, backend.model.get_parameter(key)), key
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert "quantization_config" not in loaded.config.to_dict()


@pytest.mark.parametrize("name", ["tensorwise", "blockwise", "mxfp8"])
def test_a_reference_model_computes_by_the_recipe_too(tiny: SimpleNamespace, name: str) -> None:
    """So a divergence from it begins at exactly 0."""
    actor, reference = (
        tiny.backend(tiny.model(dtype=torch.float32), role=role, **tiny.fp8, fp8_recipe=name)
        for role in ("actor", "reference")
    )
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=2)
    assert actor.log_probs(batch) == reference.log_probs(batch)
    assert actor.log_probs(batch) != tiny.backend(tiny.model(dtype=torch.float32)).log_probs(batch)


def test_a_critic_computes_by_the_recipe_too(tiny: SimpleNamespace) -> None:
    def squared(args: Any, inputs: LossInputs) -> LossOutputs:
        return LossOutputs(inputs.reduce((inputs.values - 1).square()))

    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=2)
    found = []
    for options in ({}, {**tiny.fp8, "fp8_recipe": "blockwise"}):
        critic = tiny.backend(tiny.model(dtype=torch.float32), squared, "critic", **options, lr=LR)
        critic.train_step(batch)
        found.append(torch.tensor([value for row in critic.values(batch) for value in row]))
    assert 0 < (found[0] - found[1]).norm() < 0.3 * found[0].norm()


def test_layers_at_the_ends_and_named_modules_stay_in_high_precision(tiny: SimpleNamespace) -> None:
    from slime_core.tensors.low_precision import LowPrecisionLinear

    model = tiny.model("qwen3", num_hidden_layers=4)
    options = {
        "first_last_layers_bf16": True,
        "num_layers_at_end_in_bf16": 2,
        "fp8_modules_to_not_convert": ["o_proj$"],
    }
    tiny.backend(model, **tiny.fp8, fp8_recipe="blockwise", **options)
    low = [name for name, module in model.named_modules() if isinstance(module, LowPrecisionLinear)]
    parts = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    assert low == [f"model.layers.1.{part}" for part in parts]


@pytest.mark.parametrize("name", RECIPES)
def test_experts_compute_by_the_recipe_unless_they_are_left_out(tiny: SimpleNamespace, name: str) -> None:
    """How they do is compared in the tests of slime_fp8."""
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=2)
    found = []
    for left_out in ([], [r"\.experts\."]):
        options = {**tiny.fp8, "fp8_recipe": name, "fp8_modules_to_not_convert": left_out}
        backend = tiny.backend(tiny.model("qwen3_moe", dtype=torch.float32), **options)
        for _ in range(2):  # so that delayed scaling has scales
            backend.train_step(batch)
        found.append({n: g for n, g in backend.gradients(batch) if ".experts." in n})
    assert found[0]
    for key, gradient in found[0].items():
        assert 0 < (gradient - found[1][key]).norm() < 0.5 * gradient.norm(), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp8_emulation": False}, r"--fp8-recipe blockwise: .*CPU has no FP8 arithmetic. Give --fp8-emulation"),
        ({"lora_rank": 4}, "--fp8-format e4m3 with --lora-rank 4.*Leave one of the two out"),
        ({"role": "reference", "fp8_recipe": "delayed"}, "--fp8-recipe delayed.*a reference model takes none"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tiny: SimpleNamespace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tiny.backend(tiny.model(), **{**tiny.fp8, "fp8_recipe": "blockwise", **changes})


def test_a_backend_without_a_recipe_does_not_train_in_high_precision_instead(tiny: SimpleNamespace) -> None:
    with pytest.raises(ArgumentError, match="made without a precision recipe"):
        TorchBackend(tiny.args(**tiny.fp8)).attach(tiny.model(), sft_loss, 1)
