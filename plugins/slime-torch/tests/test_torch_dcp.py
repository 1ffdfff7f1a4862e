"""States are written by and for any number of ranks, and while training goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import CheckpointError
from slime_core.training.batches import make_train_batch
from slime_torch import state
from slime_torch.backend import TorchBackend

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_what_two_ranks_saved_is_loaded_by_one_two_and_three(tmp_path: Path) -> None:
    script = Path(__file__).with_name("torch_dcp_ranks.py")
    command = [sys.executable, str(script), str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stderr


class HeldDisk:
    """Holds up every write until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go, self.begun = threading.Event(), threading.Event()
        self._right = state._write
        monkeypatch.setattr(state, "_write", self._write)

    def _write(self, *args: Any) -> None:
        self.begun.set()
        assert self._go.wait(60)
        self._right(*args)

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDisk]:
    held = HeldDisk(monkeypatch)
    yield held
    held.let_go()


def make_backend(tiny: SimpleNamespace, **options: Any) -> TorchBackend:
    return tiny.backend(tiny.model(dtype=torch.float32), lr=0.05, lr_decay_style="constant", **options)


@pytest.fixture
def batch(tiny: SimpleNamespace) -> TrainBatch:
    return make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)


def check_a_state_written_while_training(
    tiny: SimpleNamespace, disk: HeldDisk, batch: TrainBatch, folder: Path, optimizer: str = "adam"
) -> None:
    """It is what a state written at once would have been."""
    backend = make_backend(tiny, async_save=True, optimizer=optimizer)
    backend.train_step(batch)
    backend.save_state(folder)
    assert disk.begun.wait(60)
    assert not backend.saved(wait=False)
    draws = [torch.rand(1), random.random()]
    unbroken = [backend.train_step(batch) for _ in range(2)]
    assert not list(folder.iterdir())
    disk.let_go()
    assert backend.saved()
    assert backend.saved(wait=False)
    resumed = make_backend(tiny, optimizer=optimizer)
    resumed.load_state(folder)
    assert [torch.rand(1), random.random()] == draws
    assert [resumed.train_step(batch) for _ in range(2)] == unbroken


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_on_does_not_touch_a_state_that_is_being_written(
    tiny: SimpleNamespace, disk: HeldDisk, batch: TrainBatch, tmp_path: Path, optimizer: str
) -> None:
    check_a_state_written_while_training(tiny, disk, batch, tmp_path, optimizer)


def test_the_check_sees_a_state_that_was_not_copied(
    tiny: SimpleNamespace, disk: HeldDisk, batch: TrainBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_copied", dict)
    with pytest.raises(AssertionError):
        check_a_state_written_while_training(tiny, disk, batch, tmp_path)


def test_a_second_state_waits_for_the_first(
    tiny: SimpleNamespace, disk: HeldDisk, batch: TrainBatch, tmp_path: Path
) -> None:
    backend = make_backend(tiny, async_save=True)
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    backend.save_state(folders[0])
    threading.Timer(0.2, disk.let_go).start()
    backend.train_step(batch)
    backend.save_state(folders[1])
    assert (folders[0] / ".metadata").exists()
    assert backend.saved()
    resumed = [make_backend(tiny), make_backend(tiny)]
    for one, folder in zip(resumed, folders, strict=True):
        one.load_state(folder)
    assert [one._step for one in resumed] == [0, 1]


@pytest.mark.parametrize("background", [False, True])
def test_a_state_that_cannot_be_written_is_told_once(
    tiny: SimpleNamespace, batch: TrainBatch, tmp_path: Path, background: bool
) -> None:
    backend = make_backend(tiny, async_save=background)
    (tmp_path / "file").touch()

    def save_and_wait(folder: Path) -> bool:
        backend.save_state(folder)
        return backend.saved()

    with pytest.raises(OSError, match="file"):
        save_and_wait(tmp_path / "file" / "state")
    assert backend.saved()
    (tmp_path / "state").mkdir()
    assert save_and_wait(tmp_path / "state")
    make_backend(tiny).load_state(tmp_path / "state")


def test_a_state_saved_before_the_first_step_is_one(tiny: SimpleNamespace, batch: TrainBatch, tmp_path: Path) -> None:
    first, second = make_backend(tiny), make_backend(tiny)
    first.save_state(tmp_path)
    second.load_state(tmp_path)
    assert [first.train_step(batch) for _ in range(2)] == [second.train_step(batch) for _ in range(2)]


def test_the_state_of_another_optimizer_is_refused(tiny: SimpleNamespace, batch: TrainBatch, tmp_path: Path) -> None:
    first = make_backend(tiny)
    first.train_step(batch)
    first.save_state(tmp_path)
    other = make_backend(tiny, optimizer="sgd")
    before = [p.clone() for p in other.model.parameters()]
    with pytest.raises(CheckpointError, match="it is of AdamW, not SGD"):
        other.load_state(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))
