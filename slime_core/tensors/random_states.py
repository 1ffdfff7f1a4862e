"""The states of all random number generators of a process: seeded, taken and set again. Called by train backends, whose
`evaluate` and `log_probs` leave no trace in them and whose checkpoints hold them."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

RandomStates = dict[str, Any]
"""What `random_states` returns: plain data and tensors, so that `slime_core.tensors.stored` reads it."""


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, those of all CUDA devices included."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> RandomStates:
    """The states of Python's, numpy's and torch's generators and of the present CUDA device's."""
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(numpy.asarray(keys).astype("int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: RandomStates) -> None:
    """Set all generators to the states that `random_states` returned."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
