"""Which model folder somebody means who names a model, a run or a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slime_core.errors import ArgumentError
from slime_serve.folders import model_folder


def export(folder: Path, age: int = 0) -> Path:
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text("{}")
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return folder


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_model_is_itself_and_a_run_its_newest_export(tmp_path: Path) -> None:
    model = export(tmp_path / "model")
    assert model_folder(str(model)) == model
    run = tmp_path / "run"
    old, new = export(run / "hf", age=10), export(run / "model")
    assert model_folder(str(run)) == new
    assert model_folder(f"{run}/hf/") == old


@pytest.mark.parametrize("form", ["arguments:\n  save_hf: {}", "arguments:\n  save_hf:\n    value: {}", "save_hf: {}"])
@pytest.mark.parametrize("pattern", ["step{rollout_id}", "{rollout_id}/hf", "out"])
def test_exports_are_found_where_the_run_wrote_them(tmp_path: Path, form: str, pattern: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    export(elsewhere / pattern.replace("{rollout_id}", "3"), age=10)
    newest = export(elsewhere / pattern.replace("{rollout_id}", "12")) if "{" in pattern else elsewhere / pattern
    first = checkpoint(run / "iter_0000003")
    (run / "config.yaml").write_text(form.format(str(elsewhere / pattern)) + "\n")
    assert model_folder(str(run)) == newest
    if pattern.startswith("step"):
        assert model_folder(str(first)) == elsewhere / "step3"


def test_what_has_no_export_is_told_what_to_do(tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved = checkpoint(run / "iter_0000003")
    checkpoint(run / "iter_0000012")
    bare, empty, file = tmp_path / "bare", tmp_path / "empty", tmp_path / "weights.pt"
    bare.mkdir()
    empty.mkdir()
    (bare / "config.yaml").write_text("- not a configuration\n")
    file.write_text("")
    for given, problem in (
        (saved, f"slime export {saved} NEW-FOLDER"),
        (run, f"slime export {run}/iter_0000012 NEW-FOLDER"),
        (bare, "--save-hf"),
        (empty, "there is no config.json in it"),
        (file, "torch.save"),
        (tmp_path / "missing", "no such folder"),
        ("org/name", "Nothing is downloaded"),
    ):
        with pytest.raises(ArgumentError) as error:
            model_folder(str(given))
        assert problem in str(error.value), given
