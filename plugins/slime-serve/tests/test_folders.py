"""Which model folder somebody means who names a model, a run or a checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.errors import ArgumentError, Terminated
from slime_core.plugins import Plugins
from slime_serve.folders import opened


def model_folder(given: object) -> Path:
    with opened(str(given), Plugins()) as folder:
        return folder


def export(folder: Path, age: int = 0) -> Path:
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text("{}")
    os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return folder


@pytest.fixture(scope="module")
def run(tiny_model: Path, chat_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with two checkpoints and the exports of both."""
    folder = tmp_path_factory.mktemp("run")
    flags = [
        "--hf-checkpoint",
        str(tiny_model),
        "--prompt-data",
        str(chat_rows),
        "--input-key",
        "messages",
        "--save",
        str(folder),
    ]
    flags += [
        "--rollout-batch-size",
        "4",
        "--num-rollout",
        "2",
        "--save-interval",
        "1",
        "--save-hf",
        f"{folder}/step{{rollout_id}}",
    ]
    assert (
        main(["train", *flags, "--rollout-function-path", "sft", "--loss-type", "sft_loss", "--debug-train-only"]) == 0
    )
    return folder


@pytest.fixture
def moved(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """`moved("step1")`: a copy of the run without these folders."""

    def make(*without: str) -> Path:
        return Path(shutil.copytree(run, tmp_path / "moved", ignore=lambda folder, names: without))

    return make


def test_a_model_is_itself_and_a_run_its_newest_export(run: Path, tmp_path: Path) -> None:
    model = export(tmp_path / "some" / "model")
    assert model_folder(model) == model
    old, new = export(tmp_path / "runs" / "hf", age=10), export(tmp_path / "runs" / "model")
    assert model_folder(tmp_path / "runs") == new
    assert model_folder(f"{tmp_path}/runs/hf/").samefile(old)
    assert model_folder(run) == run / "step1"


def test_a_checkpoint_is_the_export_of_its_rollout(run: Path, moved: Callable[..., Path]) -> None:
    assert model_folder(run / "iter_0000000") == run / "step0"
    copy = moved()
    assert model_folder(copy).samefile(copy / "step1")


def test_what_was_not_exported_is_exported_for_as_long_as_it_is_used(
    run: Path, moved: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    copy = moved("step0", "step1")
    shutil.move(run / "step1", run / "elsewhere")
    try:
        for given in (copy, copy / "iter_0000001"):
            with opened(str(given), Plugins()) as folder:
                own, same = (load_file(path / "model.safetensors") for path in (folder, run / "elsewhere"))
                assert own.keys() == same.keys()
                assert all(own[name].equal(same[name]) for name in own)
            assert not folder.exists()
            assert f"slime export {copy}/iter_0000001 FOLDER" in capfd.readouterr().err
        with pytest.raises(Terminated):
            with opened(str(copy), Plugins()) as folder:
                signal.raise_signal(signal.SIGTERM)
        assert not folder.exists()
    finally:
        shutil.move(run / "elsewhere", run / "step1")


def test_what_is_no_model_is_told_what_to_do(moved: Callable[..., Path], tmp_path: Path) -> None:
    bare = moved("step0", "step1", "iter_0000000", "iter_0000001")
    empty, file = tmp_path / "empty", tmp_path / "weights.pt"
    empty.mkdir()
    file.write_text("")
    for given, problem in (
        (bare, "neither an exported model nor a checkpoint"),
        (empty, "there is no config.json in it"),
        (file, "torch.save"),
        (tmp_path / "missing", "no such folder"),
        ("org/name", "Nothing is downloaded"),
    ):
        with pytest.raises(ArgumentError) as error:
            model_folder(given)
        assert problem in str(error.value), given
