"""A run stopped, saved, loaded and continued equals the unbroken run bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from slime_core.errors import CheckpointError
from slime_core.training.batches import make_train_batch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def run(tiny: SimpleNamespace, backend: Any, steps: range) -> list[Any]:
    """Train; also draw from every random generator, as data augmentation in a hook might."""
    seen: list[Any] = []
    for step in steps:
        batch = make_train_batch(tiny.samples(tiny.mixed, seed=step), micro_batch_size=3)
        seen += [backend.train_step(batch), random.random(), numpy.random.rand(), torch.rand(1).item()]
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("architecture", ["llama", "llama_untied"])
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(
    tiny: SimpleNamespace, tmp_path: Path, optimizer: str, architecture: str
) -> None:
    def backend() -> Any:
        model = tiny.model(architecture, dtype=torch.float32)
        return tiny.backend(model, lr=0.02, optimizer=optimizer, lr_decay_style="cosine", lr_warmup_iters=1)

    def seed() -> None:
        random.seed(3)
        numpy.random.seed(3)
        torch.manual_seed(3)

    unbroken = backend()
    seed()
    expected = run(tiny, unbroken, range(5))

    first = backend()
    seed()
    run(tiny, first, range(2))
    first.save_state(tmp_path)
    run(tiny, first, range(2, 4))  # moves the random states on

    second = backend()
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.zero_()
    second.load_state(tmp_path)
    assert run(tiny, second, range(2, 5)) == expected[8:]
    for (name, wanted), (_, found) in zip(unbroken.weights(), second.weights(), strict=True):
        assert torch.equal(wanted, found), name
    if architecture == "llama":
        assert second.model.lm_head.weight is second.model.model.embed_tokens.weight


def test_a_missing_state_is_an_error_for_people(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        tiny.backend(tiny.model(dtype=torch.float32)).load_state(tmp_path)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "foreign"])
def test_a_damaged_state_is_an_error_for_people(tiny: SimpleNamespace, tmp_path: Path, name: str, damage: str) -> None:
    backend = tiny.backend(tiny.model(dtype=torch.float32))
    backend.save_state(tmp_path)
    file = tmp_path / name
    data = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "foreign": b"not a checkpoint"}[damage])
    with pytest.raises(CheckpointError, match="cannot be read"):
        backend.load_state(tmp_path)


def test_the_state_of_another_model_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.backend(tiny.model(dtype=torch.float32)).save_state(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        tiny.backend(tiny.model(dtype=torch.float32, hidden_size=64)).load_state(tmp_path)
