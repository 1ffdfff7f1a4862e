"""Checkpoints into FP8 and back: every tensor, its bytes, its name and its place."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_cases import differing, numbers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slime_core.errors import CheckpointError, DataError
from slime_fp8.checkpoint_folder import CheckpointFolder
from slime_fp8.convert import from_fp8, to_fp8
from slime_fp8.modules import QuantisedModules
from slime_fp8.weight_formats import FORMATS, block_format

EVERY = pytest.mark.parametrize("strategy", FORMATS)


def weights() -> dict[str, torch.Tensor]:
    """A small mixture of experts, with sizes that blocks do not divide."""
    shapes = {"model.embed_tokens.weight": (96, 200), "lm_head.weight": (96, 200), "model.norm.weight": (200,)}
    for layer in range(3):
        parts = {"self_attn.q_proj.weight": (256, 200), "self_attn.q_proj.bias": (256,), "mlp.gate.weight": (4, 200)}
        parts |= {f"mlp.experts.{n}.{p}_proj.weight": (130, 200) for n in range(4) for p in ("gate", "up")}
        parts |= {f"mlp.experts.{n}.down_proj.weight": (200, 130) for n in range(4)}
        shapes |= {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
    return {name: numbers(*shape, seed=seed).bfloat16() for seed, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as a checkpoint of two files, with a tokenizer's file beside them."""
    folder = tmp_path_factory.mktemp("model")
    every = weights()
    names = list(every)
    parts = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, own in parts.items():
        save_file({name: every[name] for name in own}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "dtype": "bfloat16", "vocab_size": 96}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def configuration(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@EVERY
def test_every_weight_becomes_what_the_format_makes_of_it_and_all_else_keeps_its_bytes(model, tmp_path, strategy):
    done = to_fp8(model, tmp_path / "fp8", FORMATS[strategy])
    found, format, before = read(tmp_path / "fp8"), FORMATS[strategy], weights()
    expected: dict[str, torch.Tensor] = {}
    for name, weight in before.items():
        expected |= format.stored(name, weight) if name in done.changed else {name: weight}
    assert found.keys() == expected.keys()
    assert {name: differing(found[name], value) for name, value in expected.items()} == dict.fromkeys(expected, 0)
    assert len(done.changed) == 3 * (1 + 4 * 3)
    assert sorted(done.left) == sorted(n for n, w in before.items() if w.ndim > 1 and n not in done.changed)
    assert {name.rpartition(".layers.")[2].partition(".")[2] for name in done.left} >= {"mlp.gate.weight"}
    assert done.bytes_before == sum(w.numel() * 2 for w in before.values())
    assert done.bytes_after == sum(t.numel() * t.dtype.itemsize for t in found.values())


def test_the_configuration_and_the_index_describe_the_new_files(model, tmp_path):
    to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    assert configuration(tmp_path / "fp8") == {
        **configuration(model),
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": [
                *("lm_head", "model.embed_tokens"),
                *(f"model.layers.{layer}.mlp.gate" for layer in range(3)),
            ],
        },
    }
    index = json.loads((tmp_path / "fp8" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "fp8" / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
    assert index["weight_map"].keys() == read(tmp_path / "fp8").keys()
    assert (tmp_path / "fp8" / "tokenizer.json").read_text() == "{}"
    assert sorted(p.name for p in (tmp_path / "fp8").iterdir()) == sorted(p.name for p in model.iterdir())


@EVERY
def test_there_and_back_gives_what_the_numbers_stand_for(model, tmp_path, strategy):
    done = to_fp8(model, tmp_path / "fp8", FORMATS[strategy])
    back = from_fp8(tmp_path / "fp8", tmp_path / "back")
    found, format = read(tmp_path / "back"), FORMATS[strategy]
    assert back.changed == done.changed
    assert configuration(tmp_path / "back") == configuration(model)
    assert found.keys() == weights().keys()
    for name, weight in weights().items():
        right = format.restored(name, format.stored(name, weight)).bfloat16() if name in done.changed else weight
        assert found[name].equal(right), name


def test_the_weights_of_a_folder_are_listed_once_and_not_for_each_of_them(model, tmp_path, monkeypatch):
    listed = []

    def tensors(folder):
        listed.append(folder.folder)
        return {name: layout for layouts in folder.files.values() for name, layout in layouts.items()}

    counted = cached_property(tensors)
    counted.__set_name__(CheckpointFolder, "tensors")
    monkeypatch.setattr(CheckpointFolder, "tensors", counted)
    to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    from_fp8(tmp_path / "fp8", tmp_path / "back")
    assert listed == [model, tmp_path / "fp8"]


def test_weights_are_restored_in_the_dtype_that_is_asked_for(model, tmp_path):
    done = to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    from_fp8(tmp_path / "fp8", tmp_path / "back", torch.float32)
    found = read(tmp_path / "back")
    assert {found[name].dtype for name in done.changed} == {torch.float32}
    assert found["lm_head.weight"].dtype == torch.bfloat16


def test_scales_may_be_in_another_file_than_their_weight(model, tmp_path):
    to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    plain = from_fp8(tmp_path / "fp8", tmp_path / "plain")
    every = read(tmp_path / "fp8")
    apart = tmp_path / "apart"
    apart.mkdir()
    scales = {name: value for name, value in every.items() if name.endswith("_scale_inv")}
    save_file({name: value for name, value in every.items() if name not in scales}, apart / "a.safetensors")
    save_file(scales, apart / "b.safetensors")
    (apart / "config.json").write_text((tmp_path / "fp8" / "config.json").read_text())
    assert set(from_fp8(apart, tmp_path / "back").changed) == set(plain.changed)
    one, other = read(tmp_path / "back"), read(tmp_path / "plain")
    assert all(one[name].equal(value) for name, value in other.items())
    assert one.keys() == other.keys()


def test_other_block_sizes_and_scales_that_are_powers_of_two_are_told_in_the_configuration(model, tmp_path):
    format = block_format((32, 64), power_of_two=True)
    to_fp8(model, tmp_path / "fp8", format)
    config = configuration(tmp_path / "fp8")["quantization_config"]
    assert (config["weight_block_size"], config["scale_fmt"]) == ([32, 64], "ue8m0")
    scales = read(tmp_path / "fp8")["model.layers.0.self_attn.q_proj.weight_scale_inv"]
    assert scales.shape == (8, 4)
    assert (scales.log2() % 1 == 0).all()
    from_fp8(tmp_path / "fp8", tmp_path / "back")
    name = "model.layers.0.self_attn.q_proj.weight"
    right = format.restored(name, format.stored(name, weights()[name])).bfloat16()
    assert read(tmp_path / "back")[name].equal(right)


def test_layers_that_are_left_out_keep_their_bytes_and_are_listed(model, tmp_path):
    done = to_fp8(model, tmp_path / "fp8", FORMATS["channel"], QuantisedModules(3, 1, 1, ("experts",)))
    assert done.changed == ("model.layers.1.self_attn.q_proj.weight",)
    ignored = configuration(tmp_path / "fp8")["quantization_config"]["ignore"]
    assert "model.layers.0.self_attn.q_proj" in ignored
    assert "model.layers.1.mlp.experts.0.up_proj" in ignored
    assert "model.layers.1.self_attn.q_proj" not in ignored


def test_weights_that_blocks_do_not_divide_are_told(model, tmp_path):
    assert len(to_fp8(model, tmp_path / "block", FORMATS["block"]).ragged) == 39
    assert to_fp8(model, tmp_path / "tensor", FORMATS["tensor"]).ragged == ()


def test_several_files_at_a_time_give_the_same(model, tmp_path):
    to_fp8(model, tmp_path / "one", FORMATS["block"])
    to_fp8(model, tmp_path / "two", FORMATS["block"], workers=2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# ------------------------------------------------------------------------------------------------------------ refusals


def copy_with(model: Path, folder: Path, **changes: torch.Tensor) -> Path:
    """The checkpoint in one file, with other tensors."""
    folder.mkdir()
    save_file({**weights(), **changes}, folder / "model.safetensors")
    (folder / "config.json").write_text((model / "config.json").read_text())
    return folder


def test_a_weight_with_nan_stops_the_conversion_by_name_and_leaves_no_checkpoint(model, tmp_path):
    bad = numbers(256, 200).bfloat16()
    bad[3, 4] = float("nan")
    source = copy_with(model, tmp_path / "bad", **{"model.layers.1.self_attn.q_proj.weight": bad})
    with pytest.raises(DataError, match=r"model.layers.1.self_attn.q_proj.weight has 1 numbers that are NaN or Inf"):
        to_fp8(source, tmp_path / "fp8", FORMATS["block"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]


def test_a_disk_that_is_full_leaves_no_checkpoint(model, tmp_path, monkeypatch):
    def no_space(path, *given):
        path.write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slime_fp8.checkpoint_folder.write_stream", no_space)
    with pytest.raises(CheckpointError, match=r"could not be written to .*fp8: \[Errno 28\] No space left on device"):
        to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_and_one_in_folders_that_do_not_exist_can_be_written_into(model, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    to_fp8(model, tmp_path / "empty", FORMATS["block"])
    to_fp8(model, tmp_path / "some" / "where", FORMATS["block"])
    monkeypatch.chdir(tmp_path)
    to_fp8(model, Path("here"), FORMATS["block"])
    expected = {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    for folder in (tmp_path / "some" / "where", tmp_path / "here"):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_a_folder_with_something_in_it_is_not_touched(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(CheckpointError, match="is not empty; nothing was written"):
        to_fp8(model, tmp_path / "mine", FORMATS["block"])
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="is not empty; nothing was written"):
        to_fp8(model, model, FORMATS["block"])


def test_what_is_quantised_already_and_what_is_not_are_told_apart(model, tmp_path):
    to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    with pytest.raises(CheckpointError, match=r"is quantised already. Restore it first \(fp8-to-hf\)"):
        to_fp8(tmp_path / "fp8", tmp_path / "twice", FORMATS["block"])
    with pytest.raises(CheckpointError, match=r"is not quantised: its config.json has no quantization_config"):
        from_fp8(model, tmp_path / "back")


@pytest.mark.parametrize("place", [(), ("text_config",)])
def test_where_config_json_says_that_weights_are_quantised_is_one_question(model, tmp_path, place):
    """A model that reads images may say it of its language model; and null says that they are not."""
    fp8, back, again = (tmp_path / name for name in ("fp8", "back", "again"))
    to_fp8(model, fp8, FORMATS["block"])
    config = configuration(fp8)
    entry = config.pop("quantization_config")
    within = config.setdefault(place[0], {}) if place else config
    within["quantization_config"] = entry
    (fp8 / "config.json").write_text(json.dumps(config))
    from_fp8(fp8, back)
    assert "quantization_config" not in json.dumps(configuration(back))
    (back / "config.json").write_text(json.dumps(configuration(back) | {"quantization_config": None}))
    to_fp8(back, again, FORMATS["block"])
    assert configuration(again)["quantization_config"] == entry


def test_experts_in_one_tensor_are_told_by_name(model, tmp_path):
    to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    name = "model.layers.0.mlp.experts.gate_up_proj"
    numbers = {name: torch.zeros(4, 128, 128).to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(4, 1, 1)}
    (tmp_path / "one").mkdir()
    save_file(numbers, tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "config.json").write_text((tmp_path / "fp8" / "config.json").read_text())
    with pytest.raises(DataError, match=rf"{name} is in 8 bits and of shape \(4, 128, 128\); expected matrices"):
        from_fp8(tmp_path / "one", tmp_path / "back")


def test_numbers_without_scales_are_told_by_name(model, tmp_path):
    to_fp8(model, tmp_path / "fp8", FORMATS["block"])
    every = read(tmp_path / "fp8")
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    del every[f"{name}_scale_inv"]
    (tmp_path / "cut").mkdir()
    save_file(every, tmp_path / "cut" / "model.safetensors")
    (tmp_path / "cut" / "config.json").write_text((tmp_path / "fp8" / "config.json").read_text())
    with pytest.raises(DataError, match=f"{name} is in 8 bits, but the checkpoint has no {name}_scale_inv"):
        from_fp8(tmp_path / "cut", tmp_path / "back")


def test_a_checkpoint_that_is_incomplete_or_none_is_told(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json cannot be read.*Expected the folder of a Hugging Face"):
        to_fp8(tmp_path / "nowhere", tmp_path / "fp8", FORMATS["block"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"num_hidden_layers": 1}')
    with pytest.raises(CheckpointError, match="has no safetensors files"):
        to_fp8(tmp_path / "empty", tmp_path / "fp8", FORMATS["block"])
    for path in model.iterdir():
        if "00002-of" not in path.name:
            (tmp_path / "empty" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002.safetensors, which"):
        to_fp8(tmp_path / "empty", tmp_path / "fp8", FORMATS["block"])
    whole = (model / "model-00002-of-00002.safetensors").read_bytes()
    (tmp_path / "empty" / "model-00002-of-00002.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is no complete safetensors file"):
        to_fp8(tmp_path / "empty", tmp_path / "fp8", FORMATS["block"])
    assert not (tmp_path / "fp8").exists()


# -------------------------------------------------------------------------------------------------------- other readers


SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}


def pretrained(folder: Path, experts: int = 0) -> Path:
    """A model of transformers' own, whose sizes blocks divide; with experts or without."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    if experts:
        config = Qwen3MoeConfig(**SIZES, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=256)
        Qwen3MoeForCausalLM(config).bfloat16().save_pretrained(folder)
    else:
        Qwen3ForCausalLM(Qwen3Config(**SIZES)).bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("experts", [0, 4])
def test_transformers_reads_a_blockwise_checkpoint_with_the_same_weights(tmp_path, experts):
    from transformers import AutoModelForCausalLM

    hf = pretrained(tmp_path / "hf", experts)
    done = to_fp8(hf, tmp_path / "fp8", FORMATS["block"])
    assert done.ragged == ()
    assert len(done.changed) == 2 * (4 + 3 * (experts or 1))
    from_fp8(tmp_path / "fp8", tmp_path / "back")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.bfloat16).state_dict()
    original = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.bfloat16).state_dict()
    assert theirs.keys() == ours.keys() == original.keys()
    assert [name for name, value in ours.items() if not theirs[name].equal(value)] == []
    kept = {name for name, value in ours.items() if original[name].equal(value)}
    assert kept == {name for name in ours if "proj" not in name}, "routers, norms, embedding and head, and they alone"


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_transformers_reads_a_checkpoint_of_compressed_tensors_with_the_same_weights(tmp_path, strategy):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    done = to_fp8(pretrained(tmp_path / "hf"), tmp_path / "fp8", FORMATS[strategy])
    from_fp8(tmp_path / "fp8", tmp_path / "back")
    how = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16, quantization_config=how)
    theirs, ours = loaded.state_dict(), read(tmp_path / "back")
    assert {theirs[name].dtype for name in done.changed} == {torch.bfloat16}
    assert [name for name, value in ours.items() if not theirs[name].equal(value)] == []
