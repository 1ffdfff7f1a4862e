"""What killed processes have left unfinished is removed by the next one that writes the same, and what others may still write is not."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slime_core.unfinished import unfinished


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
