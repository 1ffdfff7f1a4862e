"""Training with memory that is given back between the steps, compared with training that keeps it, bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron_cases import Case, forget, in_turn, make_backend
from megatron_models import make_batch
from megatron_truth import STEPS

from slime_core.contracts.loss import LossInputs, LossOutputs


def squared_error(args: Any, inputs: LossInputs) -> LossOutputs:
    """Of a critic's values from 1, or of log-probs from 0."""
    found = inputs.log_probs if inputs.values is None else inputs.values - 1.0
    return LossOutputs(inputs.reduce(found.square()))


def work(cases: Sequence[tuple[Case, str]], folder: Path, found: dict[str, Any], note: Any) -> None:
    """Compare one case after the other, each a case and a model's role."""
    in_turn([(f"{case}, {role}", case, partial(compare, case, role, folder)) for case, role in cases], found, note)


def compare(case: Case, role: str, folder: Path) -> dict[str, Any]:
    """Train twice.

    Returns:
        same, weights: whether all numbers and weights are the same.
        before, left: bytes, as `_train` says.
    """
    kept, given_back = (_train(case, role, folder, offloads) for offloads in (False, True))
    return {
        "same": kept["numbers"] == given_back["numbers"],
        "weights": all(map(torch.equal, kept["weights"], given_back["weights"])),
        **{name: given_back[name] for name in ("left", "before")},
    }


def say(folder: Path, found: dict[str, Any], note: Any) -> None:
    """What a backend says to `--offload` where there is no GPU."""
    from slime_core.errors import ArgumentError

    for colocate in (True, False):
        case = Case("qwen3", options={"offload": True, "colocate": colocate})
        for role in ("actor", "reference"):
            try:
                forget(make_backend(case, folder, squared_error, role))
                found[f"{role}, {colocate}"] = ""
            except ArgumentError as error:
                found[f"{role}, {colocate}"] = str(error)
    note()


def _train(case: Case, role: str, folder: Path, offloads: bool) -> dict[str, Any]:
    """numbers and weights of a few steps; before, left: bytes of all tensors while memory is there, and while it is given back."""
    outside = _bytes()
    backend = make_backend(case, folder, squared_error, role)
    batch = make_batch({}, ranks=backend.data_parallel_size, rows=case.rows)
    per_token = backend.values if role == "critic" else backend.log_probs
    numbers: list[Any] = [per_token(batch)]
    found: dict[str, Any] = {"before": [], "left": []}
    for _ in range(STEPS if role != "reference" else 1):
        if offloads:
            found["before"].append(_bytes() - outside)
            backend.offload()
            backend.offload()
            found["left"].append(_bytes() - outside - _in_host_memory(backend))
            backend.onload()
            backend.onload()
        if role != "reference":
            numbers.append(backend.train_step(batch))
    if offloads:
        backend.offload()
        backend.onload()
    numbers.append(per_token(batch))
    found |= {"numbers": numbers, "weights": [tensor.clone() for _, tensor in backend.weights()]}
    forget(backend)
    del backend, per_token
    gc.collect()
    return found


def _in_host_memory(backend: Any) -> int:
    """Bytes that were moved to host memory, which is that of the device here."""
    return sum(len(piece) for _, pieces in backend._offloaded._offloaded._kept for piece in pieces)


def _bytes() -> int:
    """Bytes behind all tensors of this process that Python knows."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) or issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            if storage.nbytes():
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
