"""A few damaged and hostile inputs of every kind in every test run; `python -m benchmarks.fuzz` tries thousands.

Each is read or refused with one of the project's exceptions, in a process of its own: no traceback, no signal, no end of time.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import KINDS
from benchmarks.fuzzing import rows
from benchmarks.fuzzing.outcome import outcome


@pytest.mark.parametrize(
    ("kind", "examples"), [("rows", 5), ("arrow", 15), ("recipes", 16), ("checkpoints", 10), ("samples", 12)]
)
def test_inputs_are_read_or_refused(kind: str, examples: int) -> None:
    """`hypothesis` chooses what they are made from, the same in every run; `--hypothesis-profile=search` looks for others."""
    attempt = rows_of_sixty if kind == "rows" else KINDS[kind][0]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32))
    def one(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLIME_CACHE", f"{folder}/cache")
            said = outcome(attempt(random.Random(seed), Path(folder)))
            assert said in ("read", "refused"), said

    one()


def rows_of_sixty(r: random.Random, folder: Path) -> Callable[[], None]:
    return rows.attempt(r, folder, 60)


def test_what_goes_wrong_is_seen() -> None:
    assert outcome(lambda: None) == "read"
    assert outcome(lambda: 1 / 0).startswith("traceback\n")
    assert outcome(lambda: __import__("os").abort()) == "signal 6"
    assert outcome(lambda: bytearray(8 << 30), memory=1 << 30).startswith("traceback\n")
    assert outcome(lambda: __import__("time").sleep(60), seconds=1) == "signal 14"
