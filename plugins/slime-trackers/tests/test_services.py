"""MLflow, trackio and SwanLab keep real files with the real packages, where these are installed; what is logged is read back."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from slime_core.errors import PluginError
from slime_trackers.arguments import MlflowArguments, SwanlabArguments, TrackioArguments
from slime_trackers.logged import Logged

CONFIG = {"arguments": {"rollout_batch_size": 8}, "plugins": {"slime-trackers": "0.1.0"}, "resume_after": None}
SECRET = "0123456789abcdef0123456789abcdef01234567"
ARGUMENTS = {
    "mlflow": MlflowArguments(use_mlflow=True),
    "trackio": TrackioArguments(use_trackio=True),
    "swanlab": SwanlabArguments(use_swanlab=True, swanlab_mode="offline"),
}


def tracker(name: str, run_dir: Path, config: dict[str, Any]) -> Any:
    made = getattr(importlib.import_module(f"slime_trackers.{name}_tracker"), f"{name.capitalize()}Tracker")
    return made(ARGUMENTS[name], run_dir, config)


def logged_in_two_parts(name: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed after rollout 1, and goes on from the checkpoint after rollout 0."""
    monkeypatch.setattr(sys, "argv", ["slime", "train", "--wandb-key", SECRET])
    run_dir.mkdir()
    first = tracker(name, run_dir, CONFIG)
    first.log({"eval/sums/pass@1": 0.5}, -1)
    for step in range(2):
        first.log({"train/loss": 3.0 - step}, step)
    first.close(RuntimeError("killed"))
    second = tracker(name, run_dir, {**CONFIG, "resume_after": 0})
    for step in range(1, 3):
        second.log({"train/loss": 3.0 - step}, step)
    second.close(None)


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_mlflow_has_every_metric_once_at_its_rollout(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow-skinny brings 67 MB, Databricks' SDK and OpenTelemetry among them")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logged_in_two_parts("mlflow", tmp_path / "run", monkeypatch)
    client = MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    (experiment,) = [found for found in client.search_experiments() if found.name == "slime"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "eval/sums/pass_1")] == [-1]
    assert run.info.status == "FINISHED"
    assert files_with(tmp_path, "rollout_batch_size: 8")
    assert not files_with(tmp_path, SECRET)


def test_trackio_has_every_metric_once_at_its_rollout(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio brings 13 MB and a client of Gradio")
    from trackio.sqlite_storage import SQLiteStorage

    logged_in_two_parts("trackio", tmp_path / "run", monkeypatch)
    (run,) = SQLiteStorage.get_runs("slime")
    rows = SQLiteStorage.get_logs("slime", run)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [row["step"] for row in rows if "eval/sums/pass@1" in row] == [-1]
    assert files_with(tmp_path, "rollout_batch_size")
    assert not files_with(tmp_path, SECRET)


def test_swanlab_keeps_its_run_in_the_run_directory(tmp_path, monkeypatch):
    pytest.importorskip("swanlab", reason="swanlab needs protobuf 6, where the tests run with 7")
    logged_in_two_parts("swanlab", tmp_path / "run", monkeypatch)
    assert list((tmp_path / "run" / "swanlab").rglob("*.swanlab"))
    assert files_with(tmp_path / "run", "rollout_batch_size")
    assert files_with(tmp_path / "run", "train/loss")
    assert not files_with(tmp_path, SECRET)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_missing_package_is_an_error_that_says_what_to_install(name, tmp_path, monkeypatch):
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=rf"pip install slime-trackers\[{name}\]"):
        tracker(name, tmp_path, CONFIG)


def test_a_resumed_run_logs_what_the_service_lacks(tmp_path):
    file = tmp_path / "run.json"
    first = Logged(file, CONFIG, "a")
    assert first.new({"loss": 1.0}, 0) == {"loss": 1.0}
    first.note({"loss": 1.0}, 0)
    first.note({"loss": 0.5}, 1)
    again = Logged(file, {**CONFIG, "resume_after": 0}, "b")
    assert (again.id, again.resumed) == ("a", True)
    assert again.new({"loss": 1.0}, 0) == {}
    assert again.new({"loss": 0.5, "eval": 2.0}, 1) == {"eval": 2.0}
    assert again.new({"loss": 0.25}, 2) == {"loss": 0.25}
    fresh = Logged(file, CONFIG, "b")
    assert (fresh.id, fresh.resumed) == ("b", False)


@pytest.mark.parametrize(
    ("branches", "last_step", "resume_after", "id"),
    [
        (False, 4, 1, "a"),
        (True, 4, 1, "b"),
        (True, 1, 1, "a"),  # nothing is repeated
        (True, 4, -1, "b"),
        (True, None, 1, "a"),
    ],
)
def test_a_run_whose_repeated_steps_may_have_other_numbers_begins_another_one(
    tmp_path, branches, last_step, resume_after, id
):
    file = tmp_path / "run.json"
    first = Logged(file, CONFIG, "a")
    first.remember()
    if last_step is not None:
        first.note({"loss": 1.0}, last_step)
    again = Logged(file, {**CONFIG, "resume_after": resume_after, "branches": branches}, "b")
    assert (again.id, again.resumed) == (id, id == "a")
    if id == "b":
        assert again.new({"loss": 0.5}, resume_after + 1) == {"loss": 0.5}


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b'{"id": "a", "last',
            b"\xff",
            b"null",
            b"[]",
            b"{}",
            b"[" * 9999,
            b'{"id": 3, "last_step": 1, "last_names": []}',
        ),
        *(b'{"id": "a", "last_step": "1", "last_names": []}', b'{"id": "a", "last_step": 1, "last_names": [[]]}'),
    ],
)
def test_a_damaged_note_of_what_the_service_has_is_named_and_a_new_run_writes_it_anew(tmp_path, content):
    file = tmp_path / "wandb_run.json"
    file.write_bytes(content)
    with pytest.raises(PluginError, match=rf"{file} is damaged: .*\. It holds .* Restore it, or remove it"):
        Logged(file, {**CONFIG, "resume_after": 0}, "b")
    Logged(file, CONFIG, "b").remember()
    assert Logged(file, {**CONFIG, "resume_after": 0}, "c").id == "b"


def test_the_modules_of_trackers_import_none_of_the_packages():
    before = {name for name in ARGUMENTS if name in sys.modules}
    for name in ARGUMENTS:
        importlib.import_module(f"slime_trackers.{name}_tracker")
    assert {name for name in ARGUMENTS if name in sys.modules} == before
