"""A few damaged and hostile inputs of every kind in every test run; `python -m benchmarks.fuzz` tries thousands.

Each is read or refused with one of the project's exceptions, in a process of its own: no traceback, no signal, no end of time.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz

few = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
"""`hypothesis` chooses what the inputs are made from, the same in every run; `--hypothesis-profile=search` looks for others."""


def require_no_fault(said: str) -> None:
    assert said in ("read", "refused"), said


@few
@given(seed=st.integers(0, 2**32))
def test_rows(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = fuzz.rows_file(random.Random(seed), Path(folder), 60)
        require_no_fault(fuzz.outcome(lambda: fuzz.read_rows(file, None)))


@settings(few, max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_arrow_and_parquet_files(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIME_CACHE", folder)
        file = fuzz.damaged_arrow(random.Random(seed), Path(folder))
        require_no_fault(fuzz.outcome(lambda: fuzz.read_rows(file, None, convert=False)))


@settings(few, max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_recipes_and_command_lines(seed: int) -> None:
    flags = [option.flag for option in fuzz.namespace().options.values()]
    r = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe = fuzz.damaged_recipe(r, Path(folder))
        require_no_fault(fuzz.outcome(lambda: fuzz.read_recipe_and_words(recipe, [])))
        require_no_fault(fuzz.outcome(lambda: fuzz.read_recipe_and_words(None, fuzz.damaged_words(r, flags))))


@settings(few, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_checkpoints_and_dumps(seed: int) -> None:
    pytest.importorskip("slime_torch")
    with tempfile.TemporaryDirectory() as folder:
        path = fuzz.write_checkpoint(Path(folder))
        fuzz.damage_checkpoint(random.Random(seed), path)
        require_no_fault(fuzz.outcome(lambda: fuzz.read_checkpoint(path)))


@settings(few, max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_files_of_samples(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = fuzz.damaged_samples(random.Random(seed), Path(folder))
        require_no_fault(fuzz.outcome(lambda: fuzz.read_samples(file)))


def test_what_goes_wrong_is_seen() -> None:
    assert fuzz.outcome(lambda: None) == "read"
    assert fuzz.outcome(lambda: 1 / 0).startswith("traceback\n")
    assert fuzz.outcome(lambda: __import__("os").abort()) == "signal 6"
    assert fuzz.outcome(lambda: bytearray(8 << 30), memory=1 << 30).startswith("traceback\n")
    assert fuzz.outcome(lambda: __import__("time").sleep(60), seconds=1) == "signal 14"
