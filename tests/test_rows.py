"""`open_rows` gives the same rows from every format, in any order, with little memory."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.data import open_rows
from slime_core.data.files import parse_spec

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"question {i} ünïcode 好"},
            {"role": "assistant", "content": f"answer {i}", **({"name": "bot"} if i % 3 == 0 else {})},
        ],
        "n": i,
    }
    for i in range(2500)
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    else:
        table = pa.Table.from_pylist(rows)
        compression = "lz4" if path.suffix == ".feather" else None
        with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, 300)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.arrow", "d.feather"])
def test_every_format_gives_the_same_rows_in_any_order(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    rows = open_rows([str(path)])
    assert len(rows) == len(ROWS)
    order = random.Random(0).sample(range(len(ROWS)), len(ROWS))
    assert all(rows[i] == ROWS[i] for i in order)
    assert rows.where(41) == f"{path}:42"
    copies = list((tmp_path / "cache").rglob("*.arrow"))
    assert len(copies) == (name in ("d.parquet", "d.feather")), "only what cannot be mapped is copied"


def test_a_saved_hugging_face_dataset_is_read_from_its_folder(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list(ROWS).select(range(2499, -1, -2))
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    rows = open_rows([str(tmp_path / "saved")])
    assert list(rows) == ROWS[::-1][::2]
    assert rows.where(0) == f"{tmp_path}/saved/data-00000-of-00003.arrow:1"
    assert len(rows.fingerprint()) == 3


def test_nulls_inside_structs_are_dropped_and_top_level_columns_stay(tmp_path: Path) -> None:
    given_rows = [{"m": [{"a": 1}, {"b": {"c": None, "d": 2}}], "x": None}, {"m": [], "x": "t"}]
    assert list(open_rows([str(write(tmp_path / "d.parquet", given_rows))])) == [
        {"m": [{"a": 1}, {"b": {"d": 2}}], "x": None},
        {"m": [], "x": "t"},
    ]


def test_globs_and_several_files_are_read_in_order_of_name_and_mention(tmp_path: Path) -> None:
    for name, part in (("b.jsonl", ROWS[3:5]), ("a.jsonl", ROWS[:3]), ("c.parquet", ROWS[5:9])):
        write(tmp_path / name, part)
    rows = open_rows([str(tmp_path / "*.jsonl"), str(tmp_path / "c.parquet")])
    assert list(rows) == ROWS[:9]
    assert [rows.where(i).rpartition("/")[2] for i in (2, 3, 5)] == ["a.jsonl:3", "b.jsonl:1", "c.parquet:1"]


@given(start=st.none() | st.integers(-12, 12), end=st.none() | st.integers(-12, 12), cut=st.integers(1, 9))
def test_slices_mean_what_they_mean_in_python(tmp_path_factory, start, end, cut) -> None:
    folder = tmp_path_factory.mktemp("slices")
    write(folder / "1.jsonl", ROWS[:cut])
    write(folder / "2.jsonl", ROWS[cut:10])
    spec = f"{folder}/*.jsonl@[{'' if start is None else start}:{'' if end is None else end}]"
    if expected := ROWS[:10][start:end]:
        assert list(open_rows([spec])) == expected
    else:
        with pytest.raises(Exception, match=r"selects no row: .* has 10\."):
            open_rows([spec])


def test_a_path_without_slice_is_left_alone() -> None:
    assert parse_spec("a@b[1].jsonl") == ("a@b[1].jsonl", slice(None))
    assert parse_spec("a@[:].jsonl") == ("a@[:].jsonl", slice(None))


def test_blank_lines_are_no_rows_and_row_numbers_are_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n \t\n\n{"a": 2}\n{"a": 3}\n\n')
    rows = open_rows([str(path)])
    assert list(rows) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert [rows.where(i).rpartition(":")[2] for i in range(3)] == ["2", "5", "6"]


def test_lines_may_be_longer_than_the_pieces_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [{"a": "好" * n, "l": [1, {"x": '",]}'}]} for n in (1, 50, 0, 200, 3)]
    for piece in (1, 7, 64):
        monkeypatch.setattr("slime_core.data.jsonl._PIECE", piece)
        monkeypatch.setattr("slime_core.data.json_array._PIECE", piece)
        monkeypatch.setenv("SLIME_CACHE", str(tmp_path / f"cache-{piece}"))
        for name in ("d.jsonl", "d.json"):
            assert list(open_rows([str(write(tmp_path / name, expected))])) == expected


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert list(open_rows([str(path)])) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.arrow"])
def test_the_fingerprint_follows_the_content_alone(tmp_path: Path, name: str) -> None:
    def digest(rows: list[dict]) -> str:
        path = write(tmp_path / name, rows)
        return open_rows([str(path)]).fingerprint()[str(path)]

    first = digest(ROWS[:50])
    assert digest(ROWS[:51]) != first
    assert digest(ROWS[:50]) == first


def test_a_parquet_file_that_changes_is_converted_again(tmp_path: Path) -> None:
    path = str(write(tmp_path / "d.parquet", ROWS[:5]))
    assert len(open_rows([path])) == 5
    write(tmp_path / "d.parquet", ROWS[5:9])
    assert list(open_rows([path])) == ROWS[5:9]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_parquet_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(tmp_path / "d.parquet", ROWS[:5]))
    open_rows([path])
    monkeypatch.setattr("slime_core.data.arrow._stream", lambda path: pytest.fail("converted a second time"))
    assert list(open_rows([path])) == ROWS[:5]
