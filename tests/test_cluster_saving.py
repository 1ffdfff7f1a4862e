"""`--async-save`: checkpoints that are written while training goes on are as good as others, and as complete."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import cluster_hooks
import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run import checkpoints as checkpoint
from slime_torch import state


@pytest.fixture
def flags(tiny_model, chat_rows) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "2", "--lr", "1e-2"),
        *("--num-rollout", "6", "--rollout-shuffle", "--async-save"),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_resumed_from_a_checkpoint_of_the_background_ends_like_the_unbroken_one(flags, tmp_path):
    save = ("--save", str(tmp_path / "save"), "--save-interval", "2")
    assert main(["train", *flags, *save, "--save-hf", str(tmp_path / "whole")]) == 0
    names = [path.name for path in sorted((tmp_path / "save").iterdir()) if "iter" in path.name]
    assert names == ["iter_0000001", "iter_0000003", "iter_0000005", "latest_checkpointed_iteration.txt"]
    for newer in names[1:3]:
        shutil.rmtree(tmp_path / "save" / newer)
    again = ("--load", str(tmp_path / "save"), "--run-dir", str(tmp_path / "run"), "--save-hf", str(tmp_path / "rest"))
    assert main(["train", *flags, *again]) == 0
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "rest").items())


def test_training_goes_on_while_a_checkpoint_is_written_and_it_counts_when_it_is_complete(flags, tmp_path, monkeypatch):
    cluster_hooks.TRAINED.clear()
    write, seen = state._write, []

    def slow(path: Path, *rest) -> None:
        if "0000001" in str(path):
            assert cluster_hooks.TRAINED.wait(60), "training waits for the checkpoint"
            seen.append(checkpoint.find_latest(tmp_path / "save"))
        write(path, *rest)

    monkeypatch.setattr(state, "_write", slow)
    log = "cluster_hooks.note_rollouts"
    save = ("--save", str(tmp_path / "save"), "--save-interval", "2", "--custom-rollout-log-function-path", log)
    assert main(["train", *flags, *save, "--num-rollout", "4"]) == 0
    assert seen == [None]
    assert json.loads((tmp_path / "save" / "iter_0000001" / "state.json").read_text())["rollout_id"] == 1


def test_a_disk_that_is_full_in_the_background_ends_the_run_and_keeps_the_earlier_checkpoint(
    flags, tmp_path, monkeypatch, capfd
):
    write = state._write

    def full(path: Path, *rest) -> None:
        if "0000003" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(state, "_write", full)
    assert main(["train", *flags, "--save", str(tmp_path / "save"), "--save-interval", "2"]) == 1
    told = capfd.readouterr().err
    assert "The checkpoint after rollout 3 could not be written" in told
    assert "iter_0000001, is intact" in told
    assert [path.name for path in (tmp_path / "save").glob("*iter_*")] == ["iter_0000001"]
