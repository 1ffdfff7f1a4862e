"""Copies of weights that a model keeps: what it computes and gives out with them, and after it was saved and loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron_cases import Case, forget, in_turn
from megatron_models import make_batch
from megatron_state_runs import ready, save, train


def work(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    in_turn([(str(case), case, partial(compare, case, folder)) for case in cases], found, note)


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Everything that must hold, by what it is.

    Training goes on as without a copy; the model is with a copy what it was; and so after it was loaded.
    """
    plain = ready(case, folder)
    expected = [train(plain, 1), train(plain, 1), train(plain, 1), _shown(plain)]
    forget(plain)

    backend = ready(case, folder)
    backend.keep_weights("gone")
    found = {"steps": train(backend, 1) == expected[0]}
    first = _shown(backend)
    backend.keep_weights("version-1")
    backend.forget_weights("gone")
    found["steps"] &= train(backend, 1) == expected[1]
    present = _shown(backend)
    with backend.with_kept_weights("version-1"):
        found["with the copy"] = _same(_shown(backend), first)
    found["another one"] = not _same(present, first)
    found["afterwards"] = _same(_shown(backend), present)
    with _told() as told:
        save(backend, folder / f"{case}, kept")
    found["nothing is said of the folder"] = told == []
    found["steps"] &= train(backend, 1) == expected[2] and _same(_shown(backend), expected[3])
    forget(backend)

    loaded = ready(case, folder)
    loaded.keep_weights("other")
    loaded.load_state(folder / f"{case}, kept")
    found["log-probs are not rounded"] = any(p != _rounded(p) for own in first[0] for p in own)
    found["names"] = loaded.kept_weights() == ["version-1"]
    found["loaded"] = _same(_shown(loaded), present)
    with loaded.with_kept_weights("version-1"):
        found["loaded copy"] = _same(_shown(loaded), first)
    found["goes on"] = train(loaded, 1) == expected[2] and _same(_shown(loaded), expected[3])
    forget(loaded)
    return found


def _shown(backend: Any) -> list[Any]:
    """Log-probs and weights, as they are now."""
    batch = make_batch({}, ranks=backend.data_parallel_size)
    return [backend.log_probs(batch), *(tensor.clone() for _, tensor in backend.weights())]


@contextmanager
def _told() -> Iterator[list[str]]:
    """What megatron-core logs of checkpoints that it writes."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("megatron.core.dist_checkpointing.serialization")
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


def _rounded(number: float) -> float:
    """The nearest number of bfloat16, which `--bf16` computes layers in, but no log-probs."""
    return torch.tensor(number).bfloat16().item()


def _same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
