"""Grading by reasoning-gym's own scorers, in a process of its own. Called through `slime_rewards.pool`."""

from __future__ import annotations

import ast
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from reasoning_gym import create_dataset
from reasoning_gym.dataset import ProceduralDataset

# These scorers read an answer or a label that looks like a Python list with eval(): whatever a model or a row writes would be
# executed. What they are after is a literal. Others evaluate expressions, by themselves or through sympy: see `_refuse`.
for _name in (
    "algorithmic.binary_matrix",
    "algorithmic.number_sorting",
    "algorithmic.spiral_matrix",
    "algorithmic.string_insertion",
    "games.n_queens",
):
    vars(importlib.import_module(f"reasoning_gym.{_name}"))["eval"] = ast.literal_eval

_WITHOUT_SCORER = {"game_of_life_halting"}
"""Tasks whose scorers compare truth values; every text is true."""
_BOARDS = {"arc_agi", "rearc"}
"""Tasks whose scorers compare with nested tuples, which JSON turns into lists."""


def score(task: str, settings: dict[str, Any], entry: dict[str, Any], answer: str) -> float:
    """Return what the scorer of `task` says of `answer`, in [0, 1].

    A task without a scorer of its own gets the library's, which gives partial credit to any text that contains the
    answer; so listing all answers would pay. There an answer counts when it is the right one.
    """
    dataset = _dataset(task, json.dumps(settings))
    if type(dataset).score_answer is ProceduralDataset.score_answer or task in _WITHOUT_SCORER:
        return float(answer == entry["answer"])
    if task in _BOARDS:
        board = tuple(tuple(line) for line in entry["metadata"]["output"])
        entry = {**entry, "metadata": {**entry["metadata"], "output": board}}
    try:
        with _without_effects():
            return float(dataset.score_answer(answer, entry))
    except Exception:  # several scorers raise when they cannot parse an answer
        return 0.0


class _Guard(threading.local):
    """Whether a scorer is at work in this thread, so that effects outside this process are refused."""

    is_on = False


_guard = _Guard()
_REFUSED = (
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pty.",
    "signal.",
    "tempfile.",
    "urllib.",
    "webbrowser.",
)
_HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk"}  # which imports use


@contextmanager
def _without_effects() -> Iterator[None]:
    """Refuse whatever reaches outside this process: scorers evaluate what answers, labels and metadata say."""
    _guard.is_on = True
    try:
        yield
    finally:
        _guard.is_on = False


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Python tells audit hooks of what is about to happen; an exception here keeps it from happening."""
    if not _guard.is_on:
        return
    writes = event == "open" and (args[1] is None or bool(set(args[1]) & set("wax+")))
    if writes or (event.startswith(_REFUSED) and event not in _HARMLESS):
        raise PermissionError(f"a scorer of reasoning-gym may not {event}: an answer or a row would choose code")


sys.addaudithook(_refuse)  # for good: hooks cannot be taken away again


@lru_cache(maxsize=128)
def _dataset(task: str, settings: str) -> ProceduralDataset:
    return create_dataset(task, **{**json.loads(settings), "seed": 0, "size": 1})
