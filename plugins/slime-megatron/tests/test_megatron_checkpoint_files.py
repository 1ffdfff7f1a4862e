"""Checkpoints in Hugging Face's format: read weight by weight, written in files of limited size, and complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from megatron_models import make_model, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from slime_core.errors import ArgumentError, CheckpointError
from slime_megatron.checkpoint_files import Reader, write
from slime_megatron.names import GateUp, Names, Rule, Vocabulary

pytest.importorskip("megatron.core")


def tensors(count: int) -> dict[str, Tensor]:
    """Weights of 400 bytes each."""
    return {f"layers.{n}.weight": torch.full((10, 10), float(n)) for n in range(count)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint with a configuration and layers for predicting further tokens."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "some"}')
    (folder / "generation_config.json").write_text('{"top_k": 3}')
    save_file({"model.layers.0.w": torch.zeros(2), "model.layers.3.w": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"model.layers.30.w": torch.ones(3), "model.layers.3.b": torch.ones(1)}, folder / "model-2.safetensors")
    return folder


def read_all(folder: Path) -> dict[str, Tensor]:
    with Reader(folder) as reader:
        return {name: reader.read(name) for name in reader.names()}


def test_what_is_written_is_read_again(tmp_path: Path, source: Path) -> None:
    given = tensors(3)
    write(tmp_path / "out", iter(given.items()), source)
    found = read_all(tmp_path / "out")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "some", "dtype": "float32"}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_configuration_names_the_dtype_that_was_written(
    tmp_path: Path, source: Path, dtype: torch.dtype, key: str | None
) -> None:
    """The source's is another, such as that of a model in bfloat16 that is trained in float32. Few weights keep one of their own."""
    (source / "config.json").write_text(json.dumps({"model_type": "some"} | ({key: "float64"} if key else {})))
    given = {"a": torch.ones(9, dtype=dtype), "gate.e_score_correction_bias": torch.ones(3)}
    write(tmp_path / "out", iter(given.items()), source, ["model.layers.3."])
    named = {"model_type": "some", key or "dtype": str(dtype).removeprefix("torch.")}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == named
    assert {name: read_all(tmp_path / "out")[name].dtype for name in given} == {
        "a": dtype,
        "gate.e_score_correction_bias": torch.float32,
    }


@pytest.mark.parametrize(("limit", "files"), [(399, 7), (400, 7), (799, 7), (800, 4), (1200, 3), (2800, 1), (10**9, 1)])
def test_files_are_no_larger_than_they_may_be(tmp_path: Path, source: Path, limit: int, files: int) -> None:
    write(tmp_path / "out", iter(tensors(7).items()), source, shard_bytes=limit)
    found = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(found) == files
    for file in found:
        with safe_open(file, "pt") as opened:
            assert sum(opened.get_tensor(name).numel() * 4 for name in opened.keys()) <= max(limit, 400)  # noqa: SIM118
            assert opened.metadata() == {"format": "pt"}


def test_several_files_have_an_index_that_tells_where_each_weight_is(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "out", iter(tensors(5).items()), source, shard_bytes=800)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == names
    assert index["metadata"]["total_size"] == 5 * 400
    assert index["weight_map"].keys() == tensors(5).keys()
    for file in names:
        inside = load_file(tmp_path / "out" / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == inside.keys()


def test_weights_that_training_does_not_know_are_copied_by_the_beginning_of_their_names(
    tmp_path: Path, source: Path
) -> None:
    write(tmp_path / "out", iter({"model.layers.0.w": torch.full((2,), 7.0)}.items()), source, ["model.layers.3."])
    found = read_all(tmp_path / "out")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "model.layers.0.w": [7.0, 7.0],
        "model.layers.3.w": [1.0, 1.0],
        "model.layers.3.b": [1.0],
    }


def test_one_weight_is_held_at_a_time_and_kept_as_it_was_when_it_came(tmp_path: Path, source: Path) -> None:
    buffer = torch.zeros(10, 10)

    def one_buffer() -> Iterator[tuple[str, Tensor]]:
        for n in range(3):
            yield f"layers.{n}.weight", buffer.fill_(n)

    write(tmp_path / "out", one_buffer(), source)
    assert {name: tensor[0, 0].item() for name, tensor in read_all(tmp_path / "out").items()} == {
        f"layers.{n}.weight": float(n) for n in range(3)
    }


def test_parts_of_a_larger_tensor_are_written_alone(tmp_path: Path, source: Path) -> None:
    """As gate and up projections come out of one weight; a file must not hold the whole of it."""
    whole = torch.arange(200.0).view(20, 10)
    write(tmp_path / "out", zip(["gate", "up"], whole.chunk(2), strict=True), source)
    assert torch.equal(torch.cat([read_all(tmp_path / "out")[name] for name in ("gate", "up")]), whole)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 1200


def test_a_rank_that_writes_nothing_still_takes_part_in_gathering(tmp_path: Path, source: Path) -> None:
    taken: list[str] = []

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors(3).items():
            taken.append(name)
            yield name, tensor

    write(tmp_path / "out", gathered(), source, ["model.layers.3."], write=False)
    assert taken == list(tensors(3))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"{tmp_path} has no safetensors files"):
        Reader(tmp_path)


def test_a_file_that_the_index_does_not_list_is_not_read(source: Path) -> None:
    """As one that is left of an earlier upload with more files; transformers does not read it either."""
    index = dict.fromkeys(("model.layers.0.w", "model.layers.3.w"), "model-1.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_file({"model.layers.0.w": torch.full((2,), 7.0)}, source / "model-2.safetensors")
    assert {name: tensor.tolist() for name, tensor in read_all(source).items()} == {
        "model.layers.0.w": [0.0, 0.0],
        "model.layers.3.w": [1.0, 1.0],
    }
    (source / "model-1.safetensors").unlink()
    with pytest.raises(ArgumentError, match=r"lacks model-1\.safetensors, which model\.safetensors\.index\.json lists"):
        Reader(source)


def test_a_weight_that_is_not_there_is_a_key_error(source: Path) -> None:
    with Reader(source) as reader, pytest.raises(KeyError, match=r"model\.layers\.9"):
        reader.read("model.layers.9.w")


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model("qwen3")
    save(model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))  # it was trained in float32
    write(tmp_path / "out", iter(read_all(tmp_path / "model").items()), tmp_path / "model", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


# ------------------------------------------------------------------------------------------ a rank's part of a checkpoint

RULES = [
    Rule("embedding.word_embeddings.weight", ("model.embed.weight",), Vocabulary(0, 5, 8)),
    Rule("decoder.layers.{layer}.fc1.weight", ("model.{layer}.gate.weight", "model.{layer}.up.weight"), GateUp()),
]


def part(rank: int, size: int, offset: int = 3) -> Any:
    """A model of one layer, behind three of other stages, and the patch that makes this process a tensor-parallel rank."""
    module: Any = nn.Module()
    module.config = SimpleNamespace(num_moe_experts=None)
    module.share_embeddings_and_output_weights = False
    module.embedding = nn.Module()
    module.embedding.word_embeddings = nn.Embedding(8 // size, 2)
    layer = nn.Module()
    layer.fc1 = nn.Linear(2, 8 // size, bias=False)
    module.decoder = nn.Module()
    module.decoder.layers = nn.ModuleList([layer])
    model = SimpleNamespace(module=module, names=Names(RULES), layer_offset=offset)
    return model, mock.patch("slime_megatron.weights._cut", return_value=(rank, size))


STORED = {
    "model.embed.weight": torch.arange(10.0).view(5, 2),
    "model.3.gate.weight": torch.arange(8.0).view(4, 2),
    "model.3.up.weight": 100 + torch.arange(8.0).view(4, 2),
}


def test_a_rank_reads_its_part_of_its_own_layers() -> None:
    from slime_megatron import weights

    for rank in range(2):
        model, cut = part(rank, 2)
        with cut:
            weights.load(model, STORED.__getitem__)
        found = dict(model.module.named_parameters())
        expected = torch.cat([STORED["model.embed.weight"], torch.zeros(3, 2)]).chunk(2)[rank]
        assert torch.equal(found["embedding.word_embeddings.weight"], expected)
        halves = [STORED[f"model.3.{name}.weight"].chunk(2)[rank] for name in ("gate", "up")]
        assert torch.equal(found["decoder.layers.0.fc1.weight"], torch.cat(halves))


def test_a_weight_that_the_checkpoint_lacks_is_named_with_what_it_is_for() -> None:
    from slime_megatron import weights

    model, cut = part(0, 1)
    stored = {name: tensor for name, tensor in STORED.items() if "up" not in name}
    with cut, pytest.raises(CheckpointError, match=r"no weight 'model.3.up.weight', which decoder.layers.3.fc1.weight"):
        weights.load(model, stored.__getitem__)


def test_a_weight_of_another_shape_is_named_with_both_shapes() -> None:
    from slime_megatron import weights

    model, cut = part(0, 1)
    stored = {**STORED, "model.3.up.weight": torch.zeros(6, 2)}
    with cut, pytest.raises(CheckpointError, match=r"the shape \(10, 2\), but the configuration asks for \(8, 2\)"):
        weights.load(model, stored.__getitem__)


@pytest.mark.parametrize("rows", [4, 6, 8])
def test_an_embedding_with_other_rows_than_the_configuration_says_is_an_error(rows: int) -> None:
    from slime_megatron import weights

    model, cut = part(0, 1)
    stored = {**STORED, "model.embed.weight": torch.zeros(rows, 2)}
    with (
        cut,
        pytest.raises(CheckpointError, match=f"has {rows} rows for tokens, but its configuration says vocab_size 5"),
    ):
        weights.load(model, stored.__getitem__)
