"""Conversions between Hugging Face checkpoints and torch_dist folders, in one process and without megatron-core."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_models import FAMILIES, VOCABULARY, make_model, save
from safetensors.torch import load_file, save_file
from torch import Tensor

from slime_core.cli import main

NAMES = (*FAMILIES, "qwen3, tied, 4 layers", "glm4_moe_lite, whole queries", "qwen3_moe, not normalised")
PREDICTING = ("glm4_moe", "glm4_moe_lite", "deepseek_v3")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the checkpoint of a model once, with layers for multi-token prediction where its family has them."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(name: str) -> Path:
        path: Path = folder / name
        if not path.is_dir():
            save(make_model(name), path)
            if name.startswith(PREDICTING):
                change(path, **{"model.layers.3.eh_proj.weight": torch.randn(48, 96)})
                configure(path, num_nextn_predict_layers=1)
        return path

    return checkpoint


@pytest.fixture
def qwen3(checkpoints: Any, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoints("qwen3"), tmp_path / "qwen3"))


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Put weights into a checkpoint, or take those out that are None."""
    file = folder / "model.safetensors"
    found = {**load_file(file), **tensors}
    save_file({name: t for name, t in found.items() if t is not None}, file, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    """Change a configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def to_torch_dist(source: Path, target: Path, *flags: str) -> int:
    return main(["convert", "hf-to-torch-dist", "--hf-checkpoint", str(source), "--save", str(target), *flags])


def to_hf(source: Path, target: Path, origin: Path, *flags: str) -> int:
    folders = ["--input-dir", str(source), "--output-dir", str(target), "--origin-hf-dir", str(origin)]
    return main(["convert", "torch-dist-to-hf", *folders, *flags])


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def require_same(found: Path, expected: Path) -> None:
    mine, theirs = weights_of(found), weights_of(expected)
    assert mine.keys() == theirs.keys()
    assert {n: t.dtype for n, t in mine.items()} == {n: t.dtype for n, t in theirs.items()}
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_comes_back_bit_for_bit_with_everything_beside_it(
    name: str, checkpoints: Any, tmp_path: Path
) -> None:
    source = checkpoints(name)
    assert to_torch_dist(source, tmp_path / "there") == 0
    assert (tmp_path / "there" / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert to_hf(tmp_path / "there", tmp_path / "back", source, "--chunk-size", "100000") == 0
    require_same(tmp_path / "back", source)
    files = {path.name for path in source.iterdir()} - {"model.safetensors"}
    assert files <= {path.name for path in (tmp_path / "back").iterdir()}


def test_a_file_that_no_weight_is_lost_from_may_have_well_known_names_beside_its_weights(
    checkpoints: Any, tmp_path: Path, qwen3: Path
) -> None:
    change(qwen3, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert to_torch_dist(qwen3, tmp_path / "there") == 0
    assert to_hf(tmp_path / "there", tmp_path / "back", qwen3) == 0
    require_same(tmp_path / "back", checkpoints("qwen3"))


def test_the_head_of_a_critic_comes_back_too(tmp_path: Path, qwen3: Path) -> None:
    change(qwen3, **{"value_head.weight": torch.randn(1, 48)})
    assert to_torch_dist(qwen3, tmp_path / "there") == 0
    assert to_hf(tmp_path / "there", tmp_path / "back", qwen3) == 0
    require_same(tmp_path / "back", qwen3)


@pytest.mark.parametrize(
    ("changes", "flags", "said"),
    [
        ({"model.layers.1.mlp.gate.weight": torch.ones(2, 48)}, (), "1 weights that its family does not know"),
        ({"model.layers.3.input_layernorm.weight": torch.ones(48)}, (), "model.layers.3.input_layernorm.weight"),
        ({"lm_head.bias": torch.ones(VOCABULARY)}, (), "lm_head.bias"),
        (
            {"model.layers.1.self_attn.k_proj.weight": None},
            (),
            "lacks 1 of its weights: model.layers.1.self_attn.k_proj.weight",
        ),
        ({"model.embed_tokens.weight": torch.ones(250, 48)}, (), "250 rows for tokens"),
        ({"model.layers.1.mlp.down_proj.weight": torch.ones(48, 79)}, (), "(48, 79)"),
        ({"model.layers.1.mlp.down_proj.weight": torch.ones(48, 80).half()}, (), "torch.float16"),
        ({}, ("--num-layers", "4"), "--num-layers is 4, but --hf-checkpoint"),
        ({}, ("--vocab-size", "252"), "--vocab-size is 252"),
        ({}, ("--num-layer", "3"), "There is no option --num-layer. Did you mean '--num-layers'?"),
        ({}, ("--num-layers", "x"), "--num-layers: given 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    changes: dict[str, Tensor | None], flags: tuple[str, ...], said: str, qwen3: Path, tmp_path: Path, capsys: Any
) -> None:
    change(qwen3, **changes)
    assert to_torch_dist(qwen3, tmp_path / "there", *flags) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "there" / "release").exists()
    assert not (tmp_path / "there" / "latest_checkpointed_iteration.txt").exists()


def test_a_head_that_tied_embeddings_would_lose_is_refused(checkpoints: Any, tmp_path: Path, capsys: Any) -> None:
    source = Path(shutil.copytree(checkpoints("qwen3, tied, 4 layers"), tmp_path / "tied"))
    for name, head in {
        "another": torch.ones(VOCABULARY, 48),
        "the same": load_file(source / "model.safetensors")["model.embed_tokens.weight"],
    }.items():
        change(source, **{"lm_head.weight": head.clone()})
        assert to_torch_dist(source, tmp_path / name) == (0 if name == "the same" else 2)
        assert (tmp_path / name).exists() == (name == "the same")
    assert "config.json says tie_word_embeddings, but the weights hold two" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["123", "release", "release\n"])
def test_a_folder_of_other_checkpoints_stays_as_it_is(named: str, qwen3: Path, tmp_path: Path, capsys: Any) -> None:
    latest = tmp_path / "there" / "latest_checkpointed_iteration.txt"
    latest.parent.mkdir()
    latest.write_text(named)
    refused = named == "123"
    assert to_torch_dist(qwen3, latest.parent) == (2 if refused else 0)
    assert latest.read_text() == ("123" if refused else "release")
    assert (latest.parent / "release").exists() != refused
    assert (f"{latest} names '123'" in capsys.readouterr().err) == refused


def test_the_options_of_a_launch_script_are_compared_and_do_no_harm(qwen3: Path, tmp_path: Path) -> None:
    shape = (
        "--swiglu --num-layers 3 --hidden-size 48 --ffn-hidden-size 80 --num-attention-heads 4 --group-query-attention"
    )
    more = "--num-query-groups 2 --use-rotary-position-embeddings --disable-bias-linear --normalization RMSNorm --norm-epsilon 1e-5"
    rest = "--rotary-base 10000 --vocab-size 251 --kv-channels 16 --qk-layernorm --untie-embeddings-and-output-weights"
    assert to_torch_dist(qwen3, tmp_path, *f"{shape} {more} {rest} --tensor-model-parallel-size 2".split()) == 0
    args = torch.load(tmp_path / "release" / "common.pt", weights_only=False)["args"]
    assert (args.num_layers, args.hidden_size, args.padded_vocab_size, args.swiglu) == (3, 48, 256, True)


def test_a_checkpoint_that_is_there_is_not_overwritten(qwen3: Path, tmp_path: Path, capsys: Any) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert to_torch_dist(qwen3, there) == 0 == to_hf(there, back, qwen3)
    assert to_torch_dist(qwen3, there) == 2 == to_hf(there, back, qwen3)
    assert "release exists" in (said := capsys.readouterr().err)
    assert "--force" in said
    change(qwen3, **{"model.norm.weight": torch.full((48,), 7.0)})
    assert to_torch_dist(qwen3, tmp_path / "second") == 0
    assert to_hf(tmp_path / "second", back, qwen3, "--force") == 0
    require_same(back, qwen3)


@pytest.mark.parametrize(
    "what", ["output is origin", "output has input", "something else", "no checkpoint", "hugging face"]
)
def test_folders_that_make_no_sense_are_refused(what: str, qwen3: Path, tmp_path: Path, capsys: Any) -> None:
    assert to_torch_dist(qwen3, tmp_path / "there") == 0
    given, output = tmp_path / "there", tmp_path / "back"
    expected = "is, or contains, what is converted"
    if what == "output is origin":
        output = qwen3
    elif what == "output has input":
        output = tmp_path
        (tmp_path / "config.json").touch()
    elif what == "something else":
        output, expected = tmp_path / "mine", "holds something else"
        output.mkdir()
        (output / "thesis.txt").touch()
    elif what == "no checkpoint":
        given, expected = tmp_path / "nowhere", "holds no checkpoint"
    else:
        given, expected = qwen3, "leads to a Hugging Face checkpoint"
    before = sorted(tmp_path.rglob("*"))
    assert to_hf(given, output, qwen3, "--force") == 2
    assert expected in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
