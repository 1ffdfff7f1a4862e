"""Folders that a run writes into belong to it alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slime_core.cli import main
from slime_core.errors import CheckpointError
from slime_core.run.claims import NAME, Claims
from slime_core.run.tracking import read_metrics

HOLDER = """
import sys, time
from pathlib import Path
from slime_core.run.claims import Claims
with Claims() as claims:
    claims.claim("--save", Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has claimed a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def taken(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught, Claims() as claims:
        claims.claim("--run-dir", folder)
    return str(caught.value)


def test_a_folder_of_a_run_that_goes_on_is_refused_with_the_process_that_has_it(holder, tmp_path):
    assert f"belongs to a run that is going on: process {holder.pid} on " in taken(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert str(holder.pid) in taken(tmp_path / "link"), "by another name too"


def test_a_killed_run_leaves_its_folder_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Claims() as claims:
        claims.claim("--save", tmp_path / "out")
        assert json.loads((tmp_path / "out" / NAME).read_text())["pid"] == os.getpid()


def test_within_a_process_a_folder_has_one_owner_too_until_it_is_given_back(tmp_path):
    with Claims() as claims:
        claims.claim("--run-dir", tmp_path / "out")
        claims.claim("--save", tmp_path / "out")  # one run may write both there
        assert "another run of this process" in taken(tmp_path / "out")
    with Claims() as claims:
        claims.claim("--run-dir", tmp_path / "out")


@pytest.mark.parametrize("place", ["a file", "below a file", "read-only"])
def test_a_folder_that_nobody_can_write_into_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out", "read-only": Path("/proc/out")}[
        place
    ]
    assert "cannot be written into" in taken(folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("option", ["--run-dir", "--save", "--dump-details"])
def test_a_second_run_is_refused_before_it_loads_anything(holder, sft, tmp_path, capsys, option):
    assert main(["train", *sft, option, str(tmp_path / "out")]) != 0
    said = capsys.readouterr()
    assert f"{option} {tmp_path / 'out'} belongs to a run that is going on: process {holder.pid}" in said.err
    assert "loading" not in said.out + said.err
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_an_earlier_run_wrote_is_set_aside(sft, tmp_path, capsys, goes_on):
    """Also where the same command starts again after an attempt that left no checkpoint."""
    folder = tmp_path / "run"
    words = ["train", *sft]
    words += ["--save", str(folder), "--load", str(folder), "--save-interval", "5"] if goes_on else []
    (folder / "eval").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"rollout_id": 0, "train/loss": 7.0}\n')
    (folder / "config.yaml").write_text("mine")
    (folder / "eval" / "rollout_0000000.jsonl").write_text("answers")
    for n in (1,) if goes_on else (1, 2):
        assert main(words) == 0
        assert f"of an earlier run are now in {folder / f'earlier-{n}'}" in capsys.readouterr().err
        assert len(read_metrics(folder / "metrics.jsonl")) == 1
    assert read_metrics(folder / "earlier-1" / "metrics.jsonl") == [{"rollout_id": 0, "train/loss": 7.0}]
    assert (folder / "earlier-1" / "config.yaml").read_text() == "mine"
    assert (folder / "earlier-1" / "eval" / "rollout_0000000.jsonl").read_text() == "answers"
    assert not (folder / "eval").exists()


def test_two_runs_of_one_second_get_folders_of_their_own(sft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        time, "strftime", lambda shape, *of: "runs/20260101-000000" if shape.startswith("runs/") else "now"
    )
    place = sft.index("--run-dir")
    words = ["train", *sft[:place], *sft[place + 2 :]]
    assert main(words) == main(words) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["20260101-000000", "20260101-000000-2"]
    assert all(len(read_metrics(path / "metrics.jsonl")) == 1 for path in (tmp_path / "runs").iterdir())


def test_a_hook_that_changes_the_current_folder_changes_nothing(sft, tmp_path, monkeypatch, capfd):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "wanders.py").write_text(
        "import os\nfrom slime_losses.sft import sft_loss\n"
        f"def loss(args, inputs):\n    os.chdir({str(tmp_path / 'elsewhere')!r})\n    return sft_loss(args, inputs)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        "train",
        *sft,
        "--num-rollout",
        "2",
        "--run-dir",
        "r",
        "--save",
        "c",
        "--save-interval",
        "1",
        "--save-hf",
        "m",
    ]
    words += ["--loss-type", "custom_loss", "--custom-loss-function-path", "wanders.loss"]
    words += ["--save-debug-rollout-data", "d/{rollout_id}.jsonl"]
    assert main(words) == 0
    assert os.getcwd() == str(tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    for made in ("r/metrics.jsonl", "c/iter_0000001", "m/config.json", "d/1.jsonl"):
        assert (tmp_path / made).exists(), made
