"""Programs end with whoever started them, and are reported when they do not start. Needs no SGLang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import sglang_cases as cases

from slime_engine_sglang import server
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.process import ChildProcess, tail
from slime_engine_sglang.router import Router

CHILD = (
    "import os, subprocess, sys, time; print(os.getpid(), subprocess.Popen(['sleep', '600']).pid, flush=True); "
    "time.sleep(600)"
)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


until = partial(cases.until, seconds=30.0)


def pids(log: Path) -> list[int]:
    """The processes that `CHILD` has printed."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(word) for word in lines[1].split()] if len(lines) > 1 else []


def test_a_child_ends_with_all_that_it_started_when_it_is_closed(tmp_path):
    child = ChildProcess([sys.executable, "-c", CHILD], tmp_path / "log")
    try:
        started = until(lambda: pids(tmp_path / "log"))
        assert child.status is None
    finally:
        child.close()
    until(lambda: not any(map(alive, started)))
    assert str(started[0]) in tail(tmp_path / "log")


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    code = (
        f"import sys, time; from pathlib import Path; from slime_engine_sglang.process import ChildProcess\n"
        f"ChildProcess([sys.executable, '-c', {CHILD!r}], Path({str(tmp_path / 'log')!r})); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        started = until(lambda: pids(tmp_path / "log"))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    until(lambda: not any(map(alive, started)))


def test_a_child_that_is_killed_is_noticed_and_takes_along_what_it_started(tmp_path):
    child = ChildProcess([sys.executable, "-c", CHILD], tmp_path / "log")
    try:
        started = until(lambda: pids(tmp_path / "log"))
        os.kill(started[0], signal.SIGKILL)
        assert until(lambda: child.status) == 128 + signal.SIGKILL
        until(lambda: not alive(started[1]))
    finally:
        child.close()


def test_a_server_that_does_not_start_is_reported_with_its_log(tiny_model, tmp_path, monkeypatch):
    """Without SGLang no server starts; the message must show why."""
    args = cases.options(hf_checkpoint=str(tiny_model), run_dir=str(tmp_path), rollout_num_gpus=1)
    monkeypatch.setattr(
        server, "server_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such model')"]
    )
    monkeypatch.setattr(Router, "start", lambda self: None)
    engine = SGLangEngine(args, servers=[server.Server(args, 0, tmp_path / "server-0.log")])
    try:
        with pytest.raises(SGLangError, match=r"ended with status 1 before it answered(.|\n)*no such model"):
            engine.weight_sender()
    finally:
        engine.close()
