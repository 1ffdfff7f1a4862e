"""Every type that Arrow can store is read for what it means, wherever it stands and whichever file it is in."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slime_core.data import Columns, open_rows, sample_from_row
from slime_core.errors import DataError

pytestmark = pytest.mark.usefixtures("_cache")


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))


def as_json(*texts: str, storage: pa.DataType | None = None) -> pa.Array:
    kind = pa.json_(storage or pa.string())
    return pa.ExtensionArray.from_storage(kind, pa.array(texts, kind.storage_type))


NOON = datetime(2024, 5, 6, 12, 30)
NESTED = pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.string()), ("d", pa.string())]))])
TYPES: dict[str, tuple[pa.Array, list[Any]]] = {
    "json": (as_json('"a\\nb"', '{"x": null, "y": [1, "2"]}'), ["a\nb", {"x": None, "y": [1, "2"]}]),
    "json, large": (as_json("1.5", '[null, "z"]', storage=pa.large_string()), [1.5, [None, "z"]]),
    "json null": (as_json("null", "false"), [None, False]),
    "map": (pa.array([[("a", "x"), ("b", None)], []], pa.map_(pa.string(), pa.string())), [{"a": "x", "b": None}, {}]),
    "map of numbers": (pa.array([[(1, 2)], [(-3, 4)]], pa.map_(pa.int32(), pa.int8())), [{"1": 2}, {"-3": 4}]),
    "map of structs": (
        pa.array([[("k", {"a": 1, "b": {"c": "x", "d": None}})], [("k", None)]], pa.map_(pa.string(), NESTED)),
        [{"k": {"a": 1, "b": {"c": "x"}}}, {"k": None}],
    ),
    "dictionary": (pa.array(["u", "v"]).dictionary_encode(), ["u", "v"]),
    "dictionary of dates": (
        pa.array([date(2024, 5, 6), date(2023, 1, 2)]).dictionary_encode(),
        ["2024-05-06", "2023-01-02"],
    ),
    "seconds": (pa.array([NOON] * 2, pa.timestamp("s")), ["2024-05-06T12:30:00"] * 2),
    "milliseconds": (pa.array([NOON] * 2, pa.timestamp("ms")), ["2024-05-06T12:30:00"] * 2),
    "with a zone": (pa.array([NOON] * 2, pa.timestamp("us", "UTC")), ["2024-05-06T12:30:00+00:00"] * 2),
    "date": (pa.array([date(2024, 5, 6)] * 2, pa.date32()), ["2024-05-06"] * 2),
    "date64": (pa.array([date(2024, 5, 6)] * 2, pa.date64()), ["2024-05-06"] * 2),
    "time": (pa.array([time(1, 2, 3)] * 2, pa.time32("s")), ["01:02:03"] * 2),
    "time64": (pa.array([time(1, 2, 3, 4)] * 2, pa.time64("us")), ["01:02:03.000004"] * 2),
    "duration": (pa.array([timedelta(seconds=1.5)] * 2, pa.duration("ms")), [1.5] * 2),
    "decimal": (pa.array([Decimal("0.10"), Decimal("42.00")], pa.decimal128(8, 2)), ["0.10", "42.00"]),
    "decimal without places": (pa.array([Decimal(7), Decimal(10**30)], pa.decimal128(38, 0)), [7, 10**30]),
    "decimal256": (pa.array([Decimal("1.5")] * 2, pa.decimal256(50, 1)), ["1.5"] * 2),
    "large text": (pa.array(["é", "好"], pa.large_string()), ["é", "好"]),
    "text view": (pa.array(["é", "好" * 20], pa.string_view()), ["é", "好" * 20]),
    "runs": (pa.RunEndEncodedArray.from_arrays([2], ["x"]), ["x", "x"]),
    "whole numbers": (pa.array([1, -2], pa.int8()), [1, -2]),
    "half": (pa.array([0.5, 2.0], pa.float16()), [0.5, 2.0]),
    "float": (pa.array([0.5, 2.0], pa.float32()), [0.5, 2.0]),
    "half that is no power of two": (pa.array([0.1, 12.7], pa.float16()), [0.1, 12.7]),
    "float that is no power of two": (pa.array([0.1, -1e-7], pa.float32()), [0.1, -1e-7]),
    "list of floats": (pa.array([[0.1, None], []], pa.list_(pa.float32())), [[0.1, None], []]),
    "struct of floats": (pa.array([{"a": 0.1}, {"a": None}], pa.struct([("a", pa.float32())])), [{"a": 0.1}, {}]),
    "boolean": (pa.array([True, False]), [True, False]),
    "uuid": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(int=5).bytes] * 2, pa.binary(16))),
        [str(UUID(int=5))] * 2,
    ),
    "struct": (
        pa.array([{"a": 1, "b": {"c": None, "d": "x"}}, {"a": None, "b": None}], NESTED),
        [{"a": 1, "b": {"d": "x"}}, {}],
    ),
    "list of structs": (
        pa.array([[{"a": 1}, None], [{"b": {"c": "y"}}]], pa.list_(NESTED)),
        [[{"a": 1}, None], [{"b": {"c": "y"}}]],
    ),
    "fixed list": (pa.array([[1, 2], [3, None]], pa.list_(pa.int16(), 2)), [[1, 2], [3, None]]),
    "large list": (pa.array([["a"], []], pa.large_list(pa.string())), [["a"], []]),
}
PLACES: dict[str, tuple[Callable[[pa.Array], pa.Array], Callable[[Any], Any]]] = {
    "column": (lambda values: values, lambda value: value),
    "struct": (
        lambda values: pa.StructArray.from_arrays([values], ["v"]),
        lambda value: {"v": value},
    ),
    "list": (lambda values: pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), values), lambda value: [value]),
    "list of structs": (
        lambda values: pa.ListArray.from_arrays(
            pa.array([0, 1, 2], pa.int32()), pa.StructArray.from_arrays([values, pa.array(["x", "y"])], ["v", "w"])
        ),
        None,
    ),
}
NOT_IN_PARQUET = {"runs", "text view"}


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    options = pa.ipc.IpcWriteOptions(compression="lz4" if path.suffix == ".feather" else None)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("file", ["a.arrow", "a.parquet", "a.feather"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_read_for_what_it_means(tmp_path: Path, name: str, place: str, file: str) -> None:
    if name in NOT_IN_PARQUET and file == "a.parquet":
        return
    values, expected = TYPES[name]
    put, wrapped = PLACES[place]
    if wrapped is None:
        expected = [[{"v": value, "w": w}] for value, w in zip(expected, "xy", strict=True)]
    else:
        expected = [wrapped(value) for value in expected]
    path = write(tmp_path / file, pa.table({"c": put(values), "n": pa.array([1, 2])}))
    found = list(open_rows([str(path)]))
    assert found == [{"c": value, "n": n} for value, n in zip(expected, (1, 2), strict=True)]
    json.dumps(found)
    assert [sample_from_row(Columns("n", "c"), {**row, "n": "q"}, "f:1").label for row in found] == expected


def test_what_hugging_face_datasets_writes_for_mixed_columns_is_read_as_it_was_given(tmp_path: Path) -> None:
    import datasets

    rows = [
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": 'He said "no".\n'}],
            "label": 1,
        },
        {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "label": {"a": None}},
    ]
    saved = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    saved.save_to_disk(tmp_path / "folder")
    saved.to_parquet(tmp_path / "a.parquet")
    for spec in ("folder", "a.parquet"):
        assert list(open_rows([str(tmp_path / spec)])) == rows


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (as_json('{"a": ', "1"), "the column 'c': not valid JSON at column"),
        (as_json("9" * 5000, "1"), "the column 'c': cannot be read: Exceeds the limit"),
        (as_json("[" * 200 + "]" * 200, "1"), "the column 'c': nested too deeply"),
        (as_json('"\\ud800"', "1"), "the column 'c': holds half of a surrogate pair"),
        (pa.array([b"\xff\xfe", b"a"]).view(pa.string()), "the column 'c' cannot be read: 'utf-8' codec"),
        (
            pa.array([[(1, 2), (1, 3)], []], pa.map_(pa.int8(), pa.int8())),
            "the column 'c': a map has the same key twice",
        ),
    ],
)
def test_a_value_that_cannot_be_read_hinders_no_other_row(tmp_path: Path, values: pa.Array, problem: str) -> None:
    rows = open_rows([str(write(tmp_path / "a.arrow", pa.table({"c": values})))])
    assert rows[1]
    with pytest.raises(DataError) as caught:
        rows[0]
    assert str(caught.value).startswith(f"{tmp_path}/a.arrow:1: {problem}")


def test_a_time_that_python_has_no_object_for_is_its_text(tmp_path: Path) -> None:
    values = pa.array([1, 10**18], pa.int64()).cast(pa.timestamp("ns"))
    rows = list(open_rows([str(write(tmp_path / "a.arrow", pa.table({"c": values})))]))
    assert [row["c"] for row in rows] == ["1970-01-01T00:00:00.000000001", "2001-09-09T01:46:40"]


def test_bytes_are_refused_where_they_are_read_and_nowhere_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"q": ["text"], "c": pa.array([b"\x00\xff"])}))
    (row,) = open_rows([str(path)])
    assert sample_from_row(Columns("q"), row, "f:1").prompt == "text"
    with pytest.raises(DataError, match=r"^f:1: the label is 'bytes', which JSON has no form for"):
        sample_from_row(Columns("q", "c"), row, "f:1")
