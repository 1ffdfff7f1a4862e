"""`slime convert hf-to-fp8` and `fp8-to-hf`: what their options do and what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fp8_cases import numbers
from safetensors.torch import load_file, save_file

from slime_core.cli import main

SHAPES = {
    "model.embed_tokens.weight": (16, 64),
    **{f"model.layers.{n}.mlp.{p}_proj.weight": (96, 64) for n in range(3) for p in ("gate", "up")},
    **{f"model.layers.{n}.mlp.gate.weight": (4, 64) for n in range(3)},
}
WEIGHTS = {name: numbers(*shape, seed=seed).bfloat16() for seed, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    return folder


def convert(model: Path, *words: str, to: str = "fp8", name: str = "hf-to-fp8") -> int:
    folders = ["--model-dir", str(model), "--save-dir", str(model.parent / to)]
    return main(["convert", name, *folders, *words])


def quantised(folder: Path) -> set[str]:
    tensors = load_file(folder / "model.safetensors")
    return {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}


def test_a_checkpoint_goes_there_and_back_with_the_flags_of_slime_s_tool(model, capsys):
    assert convert(model, "--strategy", "block", "--block-size", "32", "32", "--max-workers", "2") == 0
    told = capsys.readouterr().out
    assert "6 weights in FP8 (block), " in told
    assert "4 matrices keep their numbers: model.embed_tokens.weight, model.layers.0.mlp.gate.weight" in told
    assert "blocks do not divide" not in told
    config = json.loads((model.parent / "fp8" / "config.json").read_text())["quantization_config"]
    assert config["weight_block_size"] == [32, 32]
    assert convert(model.parent / "fp8", to="back", name="fp8-to-hf") == 0
    assert "6 weights restored, " in capsys.readouterr().out
    restored = load_file(model.parent / "back" / "model.safetensors")
    assert restored.keys() == WEIGHTS.keys()
    assert all(value.dtype == torch.bfloat16 for value in restored.values())
    assert torch.allclose(restored["model.layers.1.mlp.up_proj.weight"], WEIGHTS["model.layers.1.mlp.up_proj.weight"], rtol=0.07, atol=0.02)  # fmt: skip


@pytest.mark.parametrize("strategy", ["channel", "tensor", "mxfp8"])
def test_every_strategy_is_written_and_read_again(model, strategy):
    assert convert(model, "--strategy", strategy) == 0
    assert convert(model.parent / "fp8", "--dtype", "float32", to="back", name="fp8-to-hf") == 0
    restored = load_file(model.parent / "back" / "model.safetensors")
    assert restored["model.layers.1.mlp.up_proj.weight"].dtype == torch.float32


def test_layers_and_modules_are_left_out_as_in_training(model):
    assert convert(model, "--first-last-layers-bf16", "--num-layers-at-end-in-bf16", "0") == 0
    assert quantised(model.parent / "fp8") == {
        f"model.layers.{n}.mlp.{p}_proj.weight" for n in (1, 2) for p in ("gate", "up")
    }
    assert convert(model, "--fp8-modules-to-not-convert", "up_proj$", to="other") == 0
    assert quantised(model.parent / "other") == {f"model.layers.{n}.mlp.gate_proj.weight" for n in range(3)}


def test_scales_are_powers_of_two_on_demand_and_ragged_weights_are_told(model, capsys):
    assert convert(model, "--scale-fmt", "ue8m0") == 0
    assert "6 weights have sizes that blocks do not divide" in capsys.readouterr().out
    config = json.loads((model.parent / "fp8" / "config.json").read_text())["quantization_config"]
    assert config["scale_fmt"] == "ue8m0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy", "rows"], "--strategy"),
        (["--strategy", "tensor", "--block-size", "32", "32"], "--block-size goes with --strategy block, not tensor"),
        (["--strategy", "mxfp8", "--scale-fmt", "ue8m0"], "--scale-fmt goes with --strategy block, not mxfp8"),
        (["--block-size", "32"], "--block-size"),
        (["--block-size", "0", "32"], "--block-size 0 32: expected two numbers of at least 1"),
        (["--fp8-modules-to-not-convert", "("], "is no regular expression"),
        (["--num-layers-at-start-in-bf16", "1"], "have an effect only with --first-last-layers-bf16"),
        (["--num-layers-at-end-in-bf16", "0"], "have an effect only with --first-last-layers-bf16"),
        (["--first-last-layers-bf16", "--num-layers-at-start-in-bf16", "2"], "leave none of the 3 layers to FP8"),
    ],
)
def test_options_that_cannot_be_used_are_told_and_nothing_is_written(model, capsys, words, said):
    assert convert(model, *words) != 0
    assert said in capsys.readouterr().err
    assert not (model.parent / "fp8").exists()
