"""torch_dist folders of other programs: each way to call and to cut weights is read, and what does not fit is named.

The folders are made from the weights of tiny models, by torch's own writer, under the names that Megatron gives them.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_models import MODELS, make_arguments, make_config, make_model, save
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save as write_torch_dist

from slime_core.cli import main
from slime_core.errors import ArgumentError, CheckpointError
from slime_megatron import checkpoint_files, torch_dist
from slime_megatron.configuration import read_spec
from slime_megatron.inventory import is_sparse, megatron_names
from slime_megatron.names import Names
from slime_megatron.torch_dist_names import megatron_place
from slime_megatron.weight_files import open_weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ALL_SPARSE = "qwen3_moe, experts in all layers"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    MODELS[ALL_SPARSE] = {**MODELS["qwen3_moe"], "mlp_only_layers": []}

    def make(name: str) -> Path:
        if not (folder / name).is_dir():
            save(make_model(name), folder / name)
        return folder / name

    yield make
    del MODELS[ALL_SPARSE]


def spec_of(name: str, ranks: int = 1) -> Any:
    return read_spec(make_config(name), name, make_arguments(), ranks)


def wholes(name: str, folder: Path, ranks: int = 1) -> dict[str, Tensor]:
    """The weights of a model under megatron-core's names, filled up for so many tensor-parallel ranks."""
    spec, stored = spec_of(name, ranks), load_file(folder / "model.safetensors")
    rules = {own: Names(spec.rules).of(own) for own in megatron_names(spec)}
    return {own: rule.layout.join([stored[file] for file in files]) for own, (rule, files) in rules.items()}


def as_megatron_writes(name: str, folder: Path, numbered: bool = False) -> dict[str, Tensor]:
    """Weights under the names of Transformer Engine, layers and experts as dimensions of one tensor where they can be."""
    spec = spec_of(name)
    numbered = numbered or len({is_sparse(spec, n) for n in range(3)}) > 1
    parts: dict[str, dict[tuple[int, ...], Tensor]] = {}
    for own, whole in wholes(name, folder).items():
        layer = int(own.split(".")[2]) if own.startswith("decoder.layers") else 0
        place = megatron_place(own, numbered=numbered, sparse=is_sparse(spec, layer), latent=spec.latent)
        parts.setdefault(place.keys[0], {})[place.index] = whole
    return {key: stacked(found) for key, found in parts.items()}


def stacked(found: dict[tuple[int, ...], Tensor]) -> Tensor:
    if () in found:
        return found[()]
    rows = sorted({index[0] for index in found})
    return torch.stack([stacked({index[1:]: t for index, t in found.items() if index[0] == row}) for row in rows])


def with_single_experts(name: str, folder: Path, write: Callable[[str, str], str]) -> dict[str, Tensor]:
    """Weights with a tensor for each expert, the gate and the up projection of its own apart."""
    result = {}
    for own, whole in wholes(name, folder).items():
        before, experts, after = own.partition("mlp.experts.local_experts.")
        if not experts:
            result[own] = whole
            continue
        number, _, part = after.partition(".")
        key = f"{before}mlp.experts.experts.{write(number, part)}"
        halves = whole.chunk(2) if part.startswith("linear_fc1") else ()
        result |= {f"{key}_{x}": half.clone() for x, half in zip("wv", halves, strict=False)} or {key: whole}
    return result


WAYS: dict[str, tuple[str, Callable[[str, Path], dict[str, Tensor]]]] = {
    "layers in one tensor": ("qwen3", as_megatron_writes),
    "layers with numbers": ("qwen3", lambda name, folder: as_megatron_writes(name, folder, numbered=True)),
    "without Transformer Engine": ("qwen3", wholes),
    "norms behind attention and MLP": ("glm4", as_megatron_writes),
    "tied": ("qwen2", as_megatron_writes),
    "layers that differ": ("qwen3_moe", as_megatron_writes),
    "experts of all layers in one tensor": (ALL_SPARSE, as_megatron_writes),
    "latent attention and a router's bias": ("glm4_moe_lite", as_megatron_writes),
    "experts with numbers": (
        "glm4_moe",
        lambda n, f: with_single_experts(n, f, lambda number, part: f"{number}.{part}"),
    ),
    "experts with numbers behind": (
        "deepseek_v3",
        lambda n, f: with_single_experts(n, f, lambda number, part: f"{part}{number}"),
    ),
}


def read_all(folder: Path) -> None:
    """Read every weight of qwen3."""
    reader = open_weights(str(folder), "--ref-load", spec_of("qwen3"))
    for name in reader.names():
        reader.read(name)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_weights_is_read(way: str, checkpoint: Any, tmp_path: Path) -> None:
    name, write = WAYS[way]
    tensors = write(name, checkpoint(name))
    beside = {
        "optimizer.state.exp_avg.output_layer.weight": torch.ones(3),
        "chained_1.optimizer.state.x": torch.ones(2),
    }
    write_torch_dist({**tensors, **beside, "rng_state": "some text"}, checkpoint_id=tmp_path / "iter_0000007")
    stored = load_file(checkpoint(name) / "model.safetensors")
    with open_weights(str(tmp_path), "--ref-load", spec_of(name)) as reader:
        assert set(reader.names()) == stored.keys()
        assert [file for file in reader.names() if not torch.equal(reader.read(file), stored[file])] == []


@pytest.mark.parametrize(("name", "groups"), [("qwen3", 3), ("glm4", 3), ("glm4_moe_lite, dense", 6)])
@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_heads_of_zeros_that_a_run_added_for_its_layout_are_left_out(
    name: str, groups: int, ranks: int, checkpoint: Any, tmp_path: Path
) -> None:
    filled = wholes(name, checkpoint(name), ranks=3)
    write_torch_dist(filled, checkpoint_id=tmp_path)
    torch.save({"step": 3, torch_dist.GROUPS: groups}, tmp_path / "common.pt")
    stored = load_file(checkpoint(name) / "model.safetensors")
    with open_weights(str(tmp_path), "--ref-load", spec_of(name, ranks)) as reader:
        assert [file for file in reader.names() if not torch.equal(reader.read(file), stored[file])] == []
        assert [file for file in reader.names() if reader.size(file) != stored[file].shape] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop("decoder.final_layernorm.weight"),
            "lacks 1 of the weights .*: decoder.final_layernorm.weight",
        ),
        (
            lambda t: t.update({"decoder.layers.mlp.linear_fc2.bias": torch.ones(3, 48)}),
            "1 tensors .*mlp.linear_fc2.bias",
        ),
        (lambda t: t.update({"mtp.layers.0.eh_proj.weight": torch.ones(2)}), "mtp.layers.0.eh_proj.weight"),
        (lambda t: t.update({k: torch.cat([v, v[:1]]) for k, v in t.items() if ".layers." in k}), "that would be lost"),
        (lambda t: t.update({k: v[:2] for k, v in t.items() if ".layers." in k}), "lacks .* of the weights .*layers.2"),
        (
            lambda t: t.update({"embedding.word_embeddings.weight": torch.ones(250, 48)}),
            "250 rows, but .* vocab_size 251",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(change: Any, said: str, checkpoint: Any, tmp_path: Path) -> None:
    tensors = as_megatron_writes("qwen3", checkpoint("qwen3"))
    change(tensors)
    write_torch_dist(tensors, checkpoint_id=tmp_path)
    with pytest.raises(CheckpointError, match=f"(?s)--ref-load .*{said}"):
        read_all(tmp_path)


def test_weights_that_no_rule_knows_are_refused_in_a_hugging_face_checkpoint_too(
    checkpoint: Any, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("qwen3"), tmp_path, dirs_exist_ok=True)
    save_file({"model.layers.0.self_attn.sinks": torch.ones(4)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"--load .*1 weights .*model\.layers\.0\.self_attn\.sinks"):
        open_weights(str(tmp_path), "--load", spec_of("qwen3"))


def test_the_head_of_a_critic_is_read_by_its_name(checkpoint: Any, tmp_path: Path) -> None:
    head = torch.randn(1, 48)
    tensors = as_megatron_writes("qwen3", checkpoint("qwen3"))
    write_torch_dist({**tensors, "value_head.weight": head}, checkpoint_id=tmp_path)
    reader = open_weights(str(tmp_path), "--critic-load", spec_of("qwen3"))
    assert torch.equal(reader.read("value_head.weight"), head)
    assert "value_head.weight" in reader.names()


def test_layers_that_an_export_copies_may_be_in_a_folder(checkpoint: Any, tmp_path: Path) -> None:
    tensors = as_megatron_writes("glm4_moe", checkpoint("glm4_moe"))
    write_torch_dist({**tensors, "mtp.layers.0.eh_proj.weight": torch.ones(2)}, checkpoint_id=tmp_path)
    assert len(open_weights(str(tmp_path), "--ref-load", spec_of("glm4_moe")).names()) > 0


@pytest.mark.parametrize("damage", ["truncated", "gone", "metadata", "no metadata", "another format"])
def test_a_damaged_folder_says_which_file(damage: str, checkpoint: Any, tmp_path: Path) -> None:
    write_torch_dist(as_megatron_writes("qwen3", checkpoint("qwen3")), checkpoint_id=tmp_path)
    (file,) = tmp_path.glob("*.distcp")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        file.unlink()
    elif damage == "no metadata":
        (tmp_path / ".metadata").unlink()
    else:
        (tmp_path / ".metadata").write_bytes(b"nothing" if damage == "metadata" else pickle.dumps({}))
    wanted = {"truncated": "all files there have 1000: they are cut off", "gone": f"{file} is missing"}
    with pytest.raises(CheckpointError, match=wanted.get(damage, ".metadata cannot be read")):
        read_all(tmp_path)


@pytest.mark.parametrize("what", ["a tensor", "a chunk", "a chunk elsewhere"])
def test_a_size_beyond_the_bytes_of_the_files_is_an_error_before_memory_is_taken(
    what: str, checkpoint: Any, tmp_path: Path
) -> None:
    write_torch_dist(as_megatron_writes("qwen3", checkpoint("qwen3")), checkpoint_id=tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    about = metadata.state_dict_metadata["decoder.final_layernorm.weight"]
    if what == "a tensor":
        about.size = torch.Size([10**14])
    elif what == "a chunk":
        about.chunks[0].sizes = torch.Size([10**14])
    else:
        about.size = torch.Size([49])
        about.chunks[0].sizes = torch.Size([49])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    wanted = {"a tensor": "would have 400000000000000 bytes, and all files there have"}
    with pytest.raises(CheckpointError, match=wanted.get(what, r"a part of .* has the size \(48,\), and \(\d+,\) by")):
        read_all(tmp_path)


@pytest.mark.parametrize("kind", ["mp_rank_00/model_optim_rng.pt", "model_optim_rng.pt", "state.json"])
def test_a_checkpoint_in_another_format_is_refused_by_what_it_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / kind).parent.mkdir(exist_ok=True)
    (tmp_path / kind).touch()
    with pytest.raises(ArgumentError, match=r"--ref-load .* leads to a .*, which cannot be read here"):
        open_weights(str(tmp_path), "--ref-load", spec_of("qwen3"))


def test_the_state_of_a_run_is_read_and_that_of_another_train_backend_is_not(checkpoint: Any, tmp_path: Path) -> None:
    (tmp_path / "state.json").touch()
    write_torch_dist(wholes("qwen3", checkpoint("qwen3")), checkpoint_id=tmp_path / "trainer")
    with pytest.raises(
        ArgumentError, match=r"a checkpoint of a run, .*, which cannot be read here\. Go on with that run"
    ):
        open_weights(str(tmp_path), "--ref-load", spec_of("qwen3"))
    torch.save({"step": 1}, tmp_path / "trainer" / "common.pt")
    assert len(open_weights(str(tmp_path), "--ref-load", spec_of("qwen3")).names()) > 0


def test_objects_that_a_program_put_into_the_metadata_are_not_made(checkpoint: Any, tmp_path: Path) -> None:
    """Unpickling them would run whatever code they name."""
    write_torch_dist(as_megatron_writes("qwen3", checkpoint("qwen3")), checkpoint_id=tmp_path)
    file = tmp_path / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    metadata.planner_data = [Runs(tmp_path / "ran"), argparse.Namespace(a=[Runs(tmp_path / "ran")])]
    file.write_bytes(pickle.dumps(metadata))
    assert len(open_weights(str(tmp_path), "--ref-load", spec_of("qwen3")).names()) > 0
    assert not (tmp_path / "ran").exists()
    pickle.loads(file.read_bytes())
    assert (tmp_path / "ran").exists()


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self._folder, 0o777, False, True)


def test_the_chunks_of_a_tensor_are_looked_through_once_however_many_layers_and_experts_it_has(
    checkpoint: Any, tmp_path: Path
) -> None:
    looks: dict[str, int] = {}

    class Counting(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            looks[self.name] = looks.get(self.name, 0) + 1
            return super().__iter__()

        name = ""

    assert (
        main(["convert", "hf-to-torch-dist", "--hf-checkpoint", str(checkpoint(ALL_SPARSE)), "--save", str(tmp_path)])
        == 0
    )
    reader = open_weights(str(tmp_path), "--ref-load", spec_of(ALL_SPARSE))
    for name, about in reader._folder.tensors.items():  # type: ignore[attr-defined]
        about.chunks = Counting(about.chunks)
        about.chunks.name = name
    stored = load_file(checkpoint(ALL_SPARSE) / "model.safetensors")
    assert [name for name in reader.names() if not torch.equal(reader.read(name), stored[name])] == []
    assert max(looks.values()) == 1
    assert len(looks) < len(stored) / 5, "most tensors have several layers and experts"


@pytest.mark.parametrize("name", ["qwen3", ALL_SPARSE])
def test_conversions_hold_few_tensors_at_a_time(
    name: str, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, held, most = checkpoint(name), 0, 0

    def counted(read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(*arguments: Any) -> Tensor:
            nonlocal held, most
            tensor = read(*arguments)
            held += tensor.nbytes
            most = max(most, held)
            weakref.finalize(tensor, forget, tensor.nbytes)
            return tensor

        return count

    def forget(size: int) -> None:
        nonlocal held
        held -= size

    for where, method in (
        (checkpoint_files.Reader, "read"),
        (torch_dist.TorchDistFolder, "read"),
        (torch_dist.TorchDistFolder, "_read_chunk"),
    ):
        monkeypatch.setattr(where, method, counted(getattr(where, method)))
    largest = max(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
    whole = sum(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
    assert main(["convert", "hf-to-torch-dist", "--hf-checkpoint", str(source), "--save", str(tmp_path)]) == 0
    assert (most, most) < (3 * largest, whole / 2)
    most = 0
    folders = ["--input-dir", str(tmp_path), "--output-dir", str(tmp_path / "hf"), "--origin-hf-dir", str(source)]
    assert main(["convert", "torch-dist-to-hf", *folders, "--chunk-size", str(largest)]) == 0
    assert 0 < most < 5 * largest < whole
