"""What a backend says to parameters that it cannot freeze, and training that forgets its optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron_cases import Case, forget, in_turn, make_backend
from megatron_state_runs import ready, save, train

from slime_core.errors import ArgumentError


def refusals(folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    for name, patterns in {"a part of one weight": ["q_proj"], "a name of Megatron's": ["linear_fc1"]}.items():
        found[name] = said(Case("qwen3", options={"only_train_params_name_list": patterns}), folder)
    options = {"freeze_params_name_list": [r"experts\.1\."]}
    found["some experts"] = said(Case("qwen3_moe", options=options), folder)


def empty_stage(folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    options = {"only_train_params_name_list": ["layers.3"]}
    found["said"] = said(Case("qwen3, tied, 4 layers", pipeline=2, options=options), folder)


def said(case: Case, folder: Path) -> str:
    try:
        make_backend(case, folder)
    except ArgumentError as error:
        return str(error)
    return ""


def goes_on(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    """Whether training that was saved and loaded goes on bit for bit, and whether an optimizer that forgets takes the steps of a new
    one: per case."""
    in_turn([(str(case), case, partial(_goes_on, case, folder)) for case in cases], found, note)


def _goes_on(case: Case, folder: Path) -> dict[str, Any]:
    first = ready(case, folder)
    train(first, 2)
    save(first, folder / f"{case}")
    expected = [*train(first, 2), *_weights(first)]
    forget(first)
    second = ready(case, folder)
    second.load_state(folder / f"{case}")
    resumed = _same([*train(second, 2), *_weights(second)], expected)
    second.reset_optimizer()
    second.export_hf(folder / f"{case}, model")
    dist.barrier()
    steps = [*train(second, 2), *_weights(second)]
    forget(second)
    new = ready(replace(case, options={**case.options, "ref_load": str(folder / f"{case}, model")}), folder)
    reset = _same([*train(new, 2), *_weights(new)], steps)
    forget(new)
    plain = ready(case, folder)
    plain.load_state(folder / f"{case}")
    train(plain, 2)
    differs = not _same([*train(plain, 2), *_weights(plain)], steps)
    forget(plain)
    return {"resumed": resumed, "reset": reset, "differs": differs}


def _weights(backend: Any) -> list[Any]:
    return [tensor.clone() for _, tensor in backend.weights()]


def _same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
