"""A few damaged and hostile inputs of every kind in every test run; `python -m benchmarks.fuzz` tries thousands.

Each is read or refused with one of the project's exceptions, in a process of its own: no traceback, no signal, no end of time.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import KINDS
from benchmarks.fuzzing import arrow, checkpoints, recipes, rows, samples
from benchmarks.fuzzing.outcome import outcome


@pytest.mark.parametrize(
    ("kind", "examples"), [("rows", 5), ("arrow", 15), ("recipes", 16), ("checkpoints", 10), ("samples", 12)]
)
def test_inputs_are_read_or_refused(kind: str, examples: int) -> None:
    """`hypothesis` chooses what they are made from, the same in every run; `--hypothesis-profile=search` looks for others."""
    attempt = rows_of_sixty if kind == "rows" else KINDS[kind][0]

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32))
    def one(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLIME_CACHE", f"{folder}/cache")
            said = outcome(attempt(random.Random(seed), Path(folder)))
            assert said in ("read", "refused"), said

    one()


def rows_of_sixty(r: random.Random, folder: Path) -> Callable[[], None]:
    return rows.attempt(r, folder, 60)


def test_what_is_whole_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise damage is never looked at: all inputs of a kind would be refused for one reason."""
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(recipes.RECIPE)
    (tmp_path / "dump.arrow").write_bytes(samples.sample_file())
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows.conversation(random.Random(0), 1)))
    path = checkpoints.write_checkpoint(tmp_path)
    reads: list[Callable[[], object]] = [
        lambda: recipes.read_recipe_and_words(tmp_path / "recipe.yaml", []),
        lambda: recipes.read_recipe_and_words(None, recipes.WORDS),
        lambda: samples.read_samples(tmp_path / "dump.arrow"),
        lambda: rows.read_rows(tmp_path / "rows.jsonl", None),
        lambda: checkpoints.read_checkpoint(path),
    ]
    for name, data in arrow.arrow_files().items():
        (tmp_path / name).write_bytes(data)
        reads.append(partial(rows.read_rows, tmp_path / name, None, convert=False))
    assert [outcome(read) for read in reads] == ["read"] * len(reads)


def test_what_goes_wrong_is_seen() -> None:
    assert outcome(lambda: None) == "read"
    assert outcome(lambda: 1 / 0).startswith("traceback\n")
    assert outcome(lambda: __import__("os").abort()) == "signal 6"
    assert outcome(lambda: bytearray(8 << 30), memory=1 << 30).startswith("traceback\n")
    assert outcome(lambda: __import__("time").sleep(60), seconds=1) == "signal 14"
