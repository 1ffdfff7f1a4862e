"""JSON arrays: their rows read back exactly as Python's `json` reads them, from a copy that is made once."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slime_core.data import open_rows
from slime_core.errors import DataError

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), min_size=1, max_size=4)
HARD: list[Any] = [
    10**4000,
    -(2**63) - 1,
    0.1 + 0.2,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    -0.0,
    "NaN, -Infinity, 1234567890 }{][\\\"'",
    "\u2028 好 😀 \x7f",
    '"}',
    {"}": [[], {}, [{}]]},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))


@given(rows=ROWS, ascii_only=st.booleans(), indent=st.none() | st.just(1), piece=st.sampled_from([1, 7, 1 << 20]))
@example(rows=[{"hard": value} for value in HARD], ascii_only=True, indent=None, piece=1)
@example(rows=[{"hard": value} for value in HARD], ascii_only=False, indent=1, piece=1)
def test_every_value_is_what_json_reads(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], ascii_only: bool, indent: int | None, piece: int
) -> None:
    folder = tmp_path_factory.mktemp("array")
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    (folder / "a.json").write_bytes(b"\xef\xbb\xbf \n" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIME_CACHE", str(folder))
        patch.setattr("slime_core.data.json_array._PIECE", piece)
        found = list(open_rows([str(folder / "a.json")]))
    assert repr(found) == repr(json.loads(text))  # tells 1 from 1.0 and True, and 0.0 from -0.0


def test_what_only_python_calls_json_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"x": [NaN, -Infinity, 1E400, 1e99999999999999999999, -0]}]')
    (row,) = open_rows([str(tmp_path / "a.json")])
    assert math.isnan(row["x"][0])
    assert row["x"][1:] == [-math.inf, math.inf, math.inf, 0]


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        (b'{"a": "\\ud800"}', r"holds half of a surrogate pair"),
        (b'{"a": "\xff"}', r"not valid UTF-8 at byte 7 of the row: invalid start byte"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"cannot be read: Exceeds the limit \(4300 digits\)"),
        (b'{"a":\n' + b"[" * 100_000 + b"]" * 100_000 + b"}", r"nested too deeply to be read"),
    ],
)
def test_an_element_that_json_cannot_read_hinders_no_other(tmp_path: Path, element: bytes, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[\n{"a": 1},\n' + element + b',\n{"a": 3}]')
    rows = open_rows([str(path)])
    assert [rows[0], rows[2]] == [{"a": 1}, {"a": 3}]
    with pytest.raises(DataError, match=rf"^{path}:2: {problem}.*; repair or remove the row\.$"):
        rows[1]


def test_the_copy_is_made_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "a.json", tmp_path / "cache" / "rows"
    path.write_text('[{"a": 1},\n {"a": 2}]')
    first = open_rows([str(path)])
    assert list(first) == [{"a": 1}, {"a": 2}]
    (copy,) = cache.iterdir()
    assert copy.name == f"{first.fingerprint()[str(path)]}.jsonl"
    written = os.stat(copy).st_mtime_ns
    assert list(open_rows([str(path)])) == [{"a": 1}, {"a": 2}]
    assert os.stat(copy).st_mtime_ns == written
    path.write_text('[{"a": 3}]')
    assert list(open_rows([str(path)])) == [{"a": 3}]
    assert list(first) == [{"a": 1}, {"a": 2}], "rows that are open stay what they were"
    assert len(list(cache.iterdir())) == 2


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    (tmp_path / "a.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"a\.json could not be copied into the cache folder .* Set SLIME_CACHE"):
        open_rows([str(tmp_path / "a.json")])
