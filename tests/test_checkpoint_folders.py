"""Folders of weights are recognised by the names of their files, whoever wrote them; those of other programs are never called
damaged, never removed and never written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core.cli import main
from slime_core.data.checkpoint_folders import recognise
from slime_core.run import checkpoints
from slime_core.run.saving import Saving

TORCH_DIST = (".metadata", "metadata.json", "common.pt", "__0_0.distcp", "__0_1.distcp")
LATEST = "latest_checkpointed_iteration.txt"


def make(folder: Path, *files: str, **texts: str) -> Path:
    for name in (*files, *texts):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(name, ""))
    return folder


def megatron(folder: Path, *checkpoints: str, latest: str = "") -> Path:
    make(folder, *(f"{checkpoint}/{file}" for checkpoint in checkpoints for file in TORCH_DIST))
    if latest:
        (folder / LATEST).write_text(latest)
    return folder


def found(path: Path) -> tuple[str, Path] | None:
    weights = recognise(path)
    return weights and (weights.format, weights.path)


def test_a_folder_of_megatron_leads_to_the_checkpoint_that_counts(tmp_path):
    folder = megatron(tmp_path / "m", "iter_0000009", "iter_0000123", "iter_0000100")
    assert found(folder) == ("torch_dist", folder / "iter_0000123")
    for latest, counts in (("9\n", "iter_0000009"), ("release", "iter_0000123"), ("77", "iter_0000123")):
        (folder / LATEST).write_text(latest)  # one that is not there does not count
        assert found(folder) == ("torch_dist", folder / counts)
    megatron(folder, "release", latest="release")
    assert found(folder) == ("torch_dist", folder / "release")
    assert found(folder / "iter_0000009") == ("torch_dist", folder / "iter_0000009")


@pytest.mark.parametrize(
    ("files", "format", "path"),
    [
        (("config.json", "model.safetensors"), "huggingface", ""),
        (("common.pt", "metadata.json"), "torch_dist", ""),
        (("__0_0.distcp",), "torch_dist", ""),
        (("iter_0000002/mp_rank_00/model_optim_rng.pt",), "mp_rank", "iter_0000002"),
        (("release/mp_rank_00_001/model_rng.pt",), "mp_rank", "release"),
        (("model_optim_rng.pt",), "pickle", "model_optim_rng.pt"),
        (("state.json", "trainer/.metadata"), "slime", ""),
        (("iter_0000007/manifest.json",), "slime", "iter_0000007"),
    ],
)
def test_every_kind_of_folder_is_told_by_its_files(files, format, path, tmp_path):
    assert found(make(tmp_path, *files)) == (format, tmp_path / path)


@pytest.mark.parametrize("files", [(), ("config.yaml", "metrics.jsonl"), ("rollout_3.pt",), ("iter_x/.metadata",)])
def test_what_has_no_weights_is_not_taken_for_a_checkpoint(files, tmp_path):
    assert found(make(tmp_path, *files)) is None
    assert found(tmp_path / "nowhere") is None
    assert found(make(tmp_path, LATEST)) is None


def test_a_file_of_weights_is_recognised_too(tmp_path):
    assert found(make(tmp_path, "weights.pt") / "weights.pt") == ("pickle", tmp_path / "weights.pt")
    assert found(make(tmp_path, "notes.txt") / "notes.txt") is None


def test_checkpoints_of_other_programs_are_neither_found_nor_counted_nor_removed(tmp_path):
    folder = megatron(tmp_path, "iter_0000123", "iter_0000100")
    assert checkpoints.find_latest(folder) is None
    with Saving(folder, 50) as saving:
        saving.finish({})
    assert checkpoints.find_latest(folder) == folder / "iter_0000050"
    checkpoints.keep_newest(folder, 1)
    assert len(list(folder.glob("iter_*/common.pt"))) == 2


@pytest.fixture
def run(sft):
    return lambda *more: main(["train", *sft, *map(str, more)])


def test_a_run_starts_from_the_next_option_where_load_holds_nothing_and_says_so(run, tiny_model, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("--load", empty) == 0
    assert (
        f"--load {empty} holds no checkpoint: the run starts from --hf-checkpoint {tiny_model}."
        in capsys.readouterr().err
    )
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert run("--load", empty, "--ref-load", copy, "--run-dir", tmp_path / "second") == 0
    assert f"the run starts from --ref-load {copy}." in capsys.readouterr().err
    assert run("--load", copy, "--run-dir", tmp_path / "third") == 0
    assert f"--load leads to a Hugging Face checkpoint, {copy}, of another program" in capsys.readouterr().err


def test_the_weights_of_load_are_those_that_are_trained_and_not_those_of_the_reference(run, tiny_model, tmp_path):
    """Without a step that changes anything the export has the weights that the run began with."""
    import torch
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    weights = {name: tensor + 1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert run("--load", other, "--ref-load", tiny_model, "--lr", "0", "--save-hf", tmp_path / "hf") == 0
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    assert exported.keys() >= weights.keys() - {"lm_head.weight"}
    assert [name for name, tensor in exported.items() if not torch.equal(tensor, weights[name])] == []


def test_a_run_with_adapters_goes_on_with_the_weights_of_another_program_that_it_began_with(run, tiny_model, tmp_path):
    """Its checkpoints have the adapters alone; and it stops at the ends of those weights, which are not those of --hf-checkpoint."""
    import torch
    from safetensors.torch import load_file, save_file

    from slime_core.data.ends import ends_of_weights

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    weights = {name: tensor * 1.5 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    save, words = tmp_path / "save", ("--lora-rank", "2", "--lr", "0.01", "--on-resume-change", "num-rollout=allow")
    whole = ("--num-rollout", "2", *words, "--save-hf", tmp_path / "whole")
    assert run("--load", other, *whole, "--run-dir", tmp_path / "a") == 0
    assert run("--load", other, "--num-rollout", "1", *words, "--save", save, "--run-dir", tmp_path / "b") == 0
    assert ends_of_weights(SimpleNamespace(load=str(save), ref_load=None)) == [2, 5, 7]
    parts = ("--num-rollout", "2", *words, "--save", save, "--save-hf", tmp_path / "parts")
    assert run("--load", save, *parts, "--run-dir", tmp_path / "b") == 0
    assert main(["export", str(save), str(tmp_path / "exported")]) == 0
    one, *others = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts", "exported"))
    assert not torch.equal(
        one["model.embed_tokens.weight"], load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    )
    for again in others:
        assert [name for name, tensor in one.items() if not torch.equal(tensor, again[name])] == []
    other.rename(tmp_path / "moved")
    assert run("--load", save, *parts, "--num-rollout", "3", "--run-dir", tmp_path / "c") != 0


@pytest.mark.parametrize("option", ["--load", "--ref-load", "--hf-checkpoint"])
@pytest.mark.parametrize("kind", ["torch_dist", "mp_rank", "pickle"])
def test_the_torch_backend_says_what_a_folder_of_megatron_is_and_what_to_do(option, kind, run, tmp_path, capsys):
    folder, advice = tmp_path / "m", "with the program that wrote it"
    if kind == "torch_dist":
        megatron(folder, "iter_0000123", latest="123")
        advice = f"slime convert torch-dist-to-hf --input-dir {folder / 'iter_0000123'}"
    elif kind == "mp_rank":
        make(folder, "iter_0000123/mp_rank_00/model_optim_rng.pt")
    else:
        make(folder, "model_optim_rng.pt")
    before = sorted(folder.rglob("*"))
    assert run(option, folder) in (1, 2)
    told = capsys.readouterr().err
    assert f"{option} {folder} leads to a " in told
    assert advice in told
    assert "damaged" not in told
    assert "emove" not in told
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("checkpoint", ["iter_0000123", "release"])
def test_nothing_is_saved_beside_a_checkpoint_of_another_program(checkpoint, run, tmp_path, capsys):
    folder = megatron(tmp_path / "m", checkpoint, latest="123")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run("--save", folder) == 1
    assert f"holds a checkpoint of another program ({checkpoint})" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
