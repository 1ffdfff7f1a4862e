"""The training state on disk: everything that a resumed run needs to equal the unbroken one bit for bit."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from slime_core.errors import CheckpointError

_FILE = "state.pt"


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, optimizer, number of finished steps and random states into the folder `path`."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "random": random_states()}
    torch.save(state, path / _FILE)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save` wrote and return the number of finished steps.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to another model or optimizer.
    """
    file = path / _FILE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"The training state {file} cannot be read: {error}. Go on from an earlier checkpoint."
        ) from error
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The training state {file} belongs to another model or optimizer: {error} "
            "Resume with the --hf-checkpoint and --optimizer that the run was started with."
        ) from error
    set_random_states(state["random"])
    return state["step"]


def random_states() -> dict[str, Any]:
    """The states of all random number generators of this process, as plain data and tensors."""
    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
