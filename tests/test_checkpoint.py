"""A checkpoint is complete or not there; a damaged one is never loaded; a failed save leaves the older ones alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core.errors import CheckpointError
from slime_core.run import checkpoints as checkpoint
from slime_core.run.best import name_best
from slime_core.run.resume import finish_removing
from slime_core.run.saving import Checkpoints, Saving
from slime_core.sample import Sample


def write_weights(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"w" * 1000)


def save(folder: Path, rollout_id: int, write=write_weights, keep: int | None = None) -> Path:
    with Saving(folder, rollout_id) as saving:
        write(saving.trainer)
        path = saving.finish({"rollout_id": rollout_id})
    if keep is not None:
        checkpoint.keep_newest(folder, keep)
    return path


def test_what_was_saved_is_found_and_verified(tmp_path):
    assert checkpoint.find_latest(tmp_path / "nowhere") is None
    save(tmp_path, 4)
    path = save(tmp_path, 19)
    assert checkpoint.find_latest(tmp_path) == path == tmp_path / "iter_0000019"
    assert checkpoint.load_state(path) == {"rollout_id": 19}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "19\n"


@pytest.mark.parametrize("file", ["trainer/weights.bin", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "change"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, file, damage):
    path = save(tmp_path, 1) / file
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load_state(tmp_path / "iter_0000001")


def test_a_half_written_folder_is_never_found_and_is_cleared_away(tmp_path):
    (tmp_path / ".saving_iter_0000007" / "trainer").mkdir(parents=True)
    assert checkpoint.find_latest(tmp_path) is None
    save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000003", "latest_checkpointed_iteration.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_full_disk_says_so_and_leaves_the_previous_checkpoint_intact(tmp_path, error):
    previous = save(tmp_path, 1)

    def fail(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"w" * 10)
        raise error

    with pytest.raises(CheckpointError, match=r"The previous one, .*iter_0000001, is intact"):
        save(tmp_path, 2, fail)
    assert checkpoint.find_latest(tmp_path) == previous
    assert checkpoint.load_state(previous) == {"rollout_id": 1}
    assert not list(tmp_path.glob(".saving*"))


def test_a_state_that_is_no_plain_data_is_named_before_anything_is_written(tmp_path):
    left = [Sample(index=7, metadata={"lock": object()})]
    for data_source, named in [
        ({"lock": {1}}, r"the state\.data_source\.lock is 'set'"),
        ({"buffer": [left]}, r"sample 7: metadata\.lock is 'object'"),
    ]:
        saves = Checkpoints(SimpleNamespace(async_save=False), None, tmp_path, None, None)
        with pytest.raises(CheckpointError, match=rf"The checkpoint after rollout 3 cannot be written, .*{named}"):
            saves.save(3, {"data_source": data_source})
    assert not list(tmp_path.iterdir())


def test_only_the_newest_are_kept_when_asked(tmp_path):
    for rollout_id in range(5):
        save(tmp_path, rollout_id, keep=2)
    assert [p.name for p in sorted(tmp_path.glob("iter_*"))] == ["iter_0000003", "iter_0000004"]


def test_a_resumed_run_removes_what_one_that_was_killed_had_begun_to_remove(tmp_path):
    for rollout_id in range(4):
        path = save(tmp_path, rollout_id)
    for begun in (".removing_iter_0000000", ".saving_iter_0000004"):
        (tmp_path / begun / "trainer").mkdir(parents=True)
    args = SimpleNamespace(save=str(tmp_path), save_total_limit=2)
    finish_removing(args, tmp_path / "iter_0000001")  # from which a person chose to go on: the later ones stay
    assert len(list(tmp_path.glob("iter_*"))) == 4
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2\n")  # killed before it named the newest
    finish_removing(args, path)
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "3\n"
    assert [p.name for p in sorted(tmp_path.glob("*iter_*")) if p.is_dir()] == ["iter_0000002", "iter_0000003"]


def test_a_checkpoint_is_never_half_there_while_it_is_removed(tmp_path, monkeypatch):
    for rollout_id in range(3):
        save(tmp_path, rollout_id)
    removed = []

    def killed(path, **more):
        removed.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        checkpoint.shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else killed(path)
    )
    with pytest.raises(KeyboardInterrupt):
        checkpoint.keep_newest(tmp_path, 1)
    monkeypatch.undo()
    assert removed == [".removing_iter_0000000"]
    checkpoint.require_own(tmp_path)
    assert checkpoint.load_state(tmp_path / "iter_0000001") == {"rollout_id": 1}


def test_one_that_cannot_be_removed_is_told_and_ends_nothing(tmp_path, monkeypatch, caplog):
    for n in range(3):
        save(tmp_path, n)
    real = checkpoint.shutil.rmtree

    def of_another_user(folder, ignore_errors=False):
        if not ignore_errors and Path(folder).name.endswith("0000000"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        real(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", of_another_user)
    checkpoint.keep_newest(tmp_path, 1)
    checkpoint.clear_parts(tmp_path)
    assert [path.name for path in checkpoint.all_checkpoints(tmp_path)] == ["iter_0000002"]
    assert caplog.text.count("cannot be removed, and takes room") == 2


@pytest.mark.parametrize("link", ["latest", "best"])
def test_a_link_to_a_checkpoint_means_that_one(tmp_path, link):
    for n in range(3):
        save(tmp_path, n)
    (tmp_path / link).symlink_to("iter_0000001")
    found = checkpoint.find_checkpoint(tmp_path / link, None)
    assert found == tmp_path.resolve() / "iter_0000001"
    assert [path.name for path in checkpoint.newer_than(str(tmp_path), found)] == ["iter_0000002"]


def test_a_copy_of_the_best_checkpoint_is_no_other_run(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for n in range(3):
        save(old, n)
    shutil.copytree(old / "iter_0000001", new / "iter_0000001")
    args = SimpleNamespace(load=str(old), save=str(new), ckpt_step=None)
    with pytest.raises(CheckpointError, match=r"holds checkpoints already"):
        checkpoint.checkpoint_to_load(args)
    name_best(old, 1)
    assert checkpoint.checkpoint_to_load(args) == old / "iter_0000002"
    (new / "iter_0000001" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds checkpoints already \(iter_0000001\)"):
        checkpoint.checkpoint_to_load(args)


def test_the_best_checkpoint_stays(tmp_path):
    for rollout_id in range(4):
        save(tmp_path, rollout_id)
        if rollout_id == 1:
            name_best(tmp_path, rollout_id)
        checkpoint.keep_newest(tmp_path, 1)
    assert [p.name for p in sorted(tmp_path.glob("iter_*"))] == ["iter_0000001", "iter_0000003"]


def test_saving_the_same_rollout_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 1)
    assert json.loads((tmp_path / "iter_0000001" / "state.json").read_text()) == {"rollout_id": 1}
