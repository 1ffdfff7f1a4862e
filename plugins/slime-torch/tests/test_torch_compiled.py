"""`--compile-layers`: the same gradients, from one program for rows of all lengths and for all layers."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch_cases import GROUPED, make_args, make_backend, make_groups, make_model

from slime_core.errors import ArgumentError
from slime_core.tensors import matrix_products
from slime_core.training.batches import make_train_batch
from slime_torch.backend import TorchBackend
from slime_torch.compiled import compile_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]  # by torch itself


def test_compiled_layers_have_the_same_gradients_whatever_the_lengths_of_rows() -> None:
    model = make_model("qwen3", torch.float32)
    plain, compiled = make_backend(copy.deepcopy(model)), make_backend(model)
    programs = CompileCounterWithBackend("eager")  # what is traced, computed as it stands
    assert compile_layers(compiled.model, programs) == 2 * 4
    counts = []
    for seed in range(2):
        samples = make_groups(GROUPED, seed=seed)[: 8 - 3 * seed]
        batch = make_train_batch(samples, micro_batch_size=4, share_prompts=True)
        expected = dict(plain.gradients(batch))
        for name, gradient in compiled.gradients(batch):
            torch.testing.assert_close(gradient, expected[name])
        counts.append(programs.frame_count)
    assert counts[0] == counts[1] <= 6  # as many as the parts of one layer, cut at its attention


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for the programs")
def test_programs_for_the_cpu_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        matrix_products, "LEAST_OPERATIONS", 1
    )  # so that all products are oneDNN's where it is the faster library
    model = make_model("qwen3", torch.float32)
    plain, compiled = make_backend(copy.deepcopy(model)), make_backend(model)
    compile_layers(compiled.model)
    batch = make_train_batch(make_groups(GROUPED), micro_batch_size=4, share_prompts=True)
    expected = dict(plain.gradients(batch))
    for name, gradient in compiled.gradients(batch):
        torch.testing.assert_close(gradient, expected[name])


def test_a_cpu_without_a_compiler_is_told_of_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ArgumentError, match="the compiler no-such-compiler is not on the PATH"):
        compile_layers(make_model("qwen3", torch.float32))


def test_a_model_without_layers_to_compile_is_refused() -> None:
    model = make_model("qwen3", torch.float32)
    model._no_split_modules = set()
    with pytest.raises(ArgumentError, match="--compile-layers finds no decoder layers in Qwen3ForCausalLM"):
        compile_layers(model, "eager")


@pytest.mark.parametrize("other", [{"lora_rank": 2}, {"fp8_format": "e4m3", "fp8_emulation": True}])
def test_compiled_layers_do_not_go_with_layers_that_others_make(other: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="--compile-layers does not go with --"):
        TorchBackend(make_args(compile_layers=True, **other))
