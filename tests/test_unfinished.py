"""What killed processes have left unfinished is removed by the next one that writes the same, and what others may still write is not."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slime_core.unfinished import replace_folder, replace_model, unfinished


def test_what_dead_processes_left_is_removed_and_what_others_may_write_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    target, host = tmp_path / "model", unfinished(tmp_path / "model").name.split(".")[2]
    assert host
    assert socket.gethostname().startswith(host.split("-")[0])
    dead = tmp_path / f".model.{host}.{ended.pid}"
    (dead / "part").mkdir(parents=True)
    file = tmp_path / f".model.{host}.{ended.pid}.jsonl"
    file.write_text("{}")
    kept = [
        tmp_path / f".model.{host}.{os.getppid()}",  # alive
        tmp_path / f".model.elsewhere.{ended.pid}",
        tmp_path / f".model.{ended.pid}",  # nobody knows of which machine
        tmp_path / f".model.v2.{host}.{ended.pid}",  # of another target
        tmp_path / "model.5",
    ]
    for path in kept:
        path.mkdir()
    with caplog.at_level(logging.WARNING):
        assert unfinished(target, ".jsonl") == tmp_path / f".model.{host}.{os.getpid()}.jsonl"
    assert not dead.exists()
    assert not file.exists()
    assert all(path.exists() for path in kept)
    said = [record.getMessage() for record in caplog.records]
    assert [path.name for path in tmp_path.iterdir() if any(f"{path} may be" in line for line in said)] == [
        path.name for path in tmp_path.iterdir() if path in kept[1:3]
    ]
    assert len(said) == 4


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert unfinished(tmp_path / "none" / "model").parent == tmp_path / "none"


@pytest.fixture(params=["not there", "a folder", "a link", "a link to another disk"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A place for a model, with an older one where it can be."""
    target = tmp_path / "place" / "model"
    target.parent.mkdir()
    if request.param == "not there":
        yield target
        return
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm" if request.param == "a link to another disk" else tmp_path))
    if request.param == "a folder":
        target.mkdir()
    else:
        target.symlink_to(elsewhere)
    for name, text in (("model.safetensors.index.json", "old"), ("config.json", "old"), ("notes.txt", "mine")):
        (target / name).write_text(text)
    yield target
    shutil.rmtree(elsewhere)


@pytest.mark.parametrize("replace", [replace_model, replace_folder])
def test_a_model_takes_its_place_wherever_that_is(target: Path, replace: Callable[[Path, Path], None]) -> None:
    was_there, is_link = target.exists(), target.is_symlink()
    hidden = unfinished(target)
    (hidden / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "sub/part"):
        (hidden / name).write_text("new")
    replace(hidden, target)
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    kept = {"notes.txt": "mine"} if was_there and replace is replace_model else {}
    assert found == {"model.safetensors": "new", "config.json": "new", "sub/part": "new"} | kept
    assert target.is_symlink() == is_link
    assert not hidden.exists()
