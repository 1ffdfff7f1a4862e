"""Fused layers: the gradients of the model's own layers, added to those of earlier micro-batches, and by kernels what torch's operations
give."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_cases import GROUPED, make_backend, make_groups, make_model

from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.training.batches import make_train_batch
from slime_torch.fused_layers import _is_right, _plan, fuse_layers
from slime_torch.model import prepare
from slime_torch.rms_norm import speed_up_norms


@pytest.mark.parametrize("architecture", ["llama", "llama_untied", "qwen2_sliding", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_layers_have_the_same_gradients_over_several_micro_batches(
    architecture: str, checkpointing: bool
) -> None:
    model = make_model(architecture, torch.float32)
    plain = make_backend(copy.deepcopy(model))
    fused = make_backend(model, gradient_checkpointing=checkpointing)
    fused._rounded = RoundedWeights(torch.float32, keep=not checkpointing)
    assert fuse_layers(fused.model, fused._rounded, autocast=False) == 2
    batch = make_train_batch(make_groups(GROUPED), micro_batch_size=3, share_prompts=True)
    assert len(batch.micro_batches) > 2
    expected, found = dict(plain.gradients(batch)), dict(fused.gradients(batch))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_fused_layers_in_fp8_have_the_gradients_and_scales_of_the_model_s_own(recipe: str, tiny: Any) -> None:
    options = {**tiny.fp8, "fp8_recipe": recipe, "lr": 1e-2, "optimizer": "sgd"}
    model = tiny.model("qwen3", dtype=torch.float32)
    plain, fused = (tiny.backend(copy.deepcopy(model), **options) for _ in range(2))
    assert fuse_layers(fused.model, RoundedWeights(torch.float32), autocast=False) == 2
    batch = make_train_batch(make_groups(GROUPED), micro_batch_size=3)
    for _ in range(2):
        plain.train_step(batch)
        fused.train_step(batch)
    found = dict(fused.model.state_dict())
    for name, expected in plain.model.state_dict().items():
        # A last digit now and then decides which of two numbers of 8 bits another one becomes.
        assert (found[name] - expected).norm() <= 1e-3 * expected.norm(), name
    assert list(fused.log_probs(batch)[0]) == pytest.approx(list(plain.log_probs(batch)[0]), abs=0.02)


def test_rounded_weights_are_those_of_their_step() -> None:
    model = make_model("qwen3", torch.float32)
    plain, fused = (make_backend(copy.deepcopy(model), lr=1e-2, optimizer="sgd") for _ in range(2))
    fused._rounded = RoundedWeights(torch.float32)
    fuse_layers(fused.model, fused._rounded, autocast=False)
    batch = make_train_batch(make_groups(GROUPED), micro_batch_size=3, share_prompts=True)
    for _ in range(2):
        plain.train_step(batch)
        fused.train_step(batch)
    assert list(fused.log_probs(batch)[0]) == pytest.approx(list(plain.log_probs(batch)[0]), abs=1e-5)
    for (name, expected), found in zip(plain.model.named_parameters(), fused.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.self_attn, "o_proj", torch.nn.Identity()),
        lambda layer: setattr(layer.mlp, "act_fn", torch.nn.GELU()),
        lambda layer: layer.add_module("another", torch.nn.Linear(2, 2)),
        lambda layer: setattr(layer, "input_layernorm", torch.nn.LayerNorm(32)),
    ],
    ids=["a layer less", "another activation", "something more", "another norm"],
)
def test_a_changed_layer_stays_as_it_is(change: Callable[[Any], None]) -> None:
    model = make_model("qwen3", torch.float32)
    speed_up_norms(model)
    change(model.model.layers[1])
    assert fuse_layers(model, RoundedWeights(torch.float32), autocast=False) == 1


def test_a_layer_that_computes_something_else_is_found_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("llama", torch.float32)
    speed_up_norms(model)
    prepare(model)
    layer = model.model.layers[0]
    plan = _plan(layer, RoundedWeights(torch.bfloat16), False)
    assert plan is not None
    assert _is_right(layer, plan, torch.device("cpu"))
    layer.self_attn.scaling *= 1.5  # read by both
    assert _is_right(layer, plan, torch.device("cpu"))
    layer.post_attention_layernorm.rms_norm_of = (0.5, 0.0, None)  # read by the layer's own forward alone
    assert not _is_right(layer, plan, torch.device("cpu"))
    assert "LlamaDecoderLayer is not fused: its output is off by" in caplog.text


def test_kernels_compute_what_torch_does() -> None:
    pytest.importorskip(
        "triton", reason="a torch without CUDA brings no Triton; benchmarks.gpu compares kernels as well"
    )
    code = (
        "import torch; from slime_core.tensors.fused_proof import distances; "
        "print(max(distance for _, distance in distances(torch.device('cpu'), torch.float32)))"
    )
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}  # read when Triton is imported
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=interpreted, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5
