"""`convert_file`: whole files, both output formats, bad rows, and what is left behind when something goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slime_core.data import chat_messages, convert_file, open_rows
from slime_core.errors import DataError
from slime_rollout_sft import converters


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def hermes(*turns: tuple[str, str], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns], **columns}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "cache")


def test_openhermes_becomes_a_parquet_file_that_other_tools_read_as_messages(tmp_path: Path) -> None:
    rows = [hermes(("system", "s"), ("human", f"q{i}"), ("gpt", f"a{i}"), id=i) for i in range(5000)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "in.parquet")
    report = convert_file([str(tmp_path / "in.parquet")], tmp_path / "out.parquet", converters.openhermes)
    assert (report.written, report.skipped) == (5000, 0)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.column_names == ["messages"]
    assert written.schema.field("messages").type == pa.list_(
        pa.struct([("role", pa.string()), ("content", pa.string())])
    )
    assert written.num_rows == 5000
    assert written.slice(4321, 1).to_pylist()[0]["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q4321"},
        {"role": "assistant", "content": "a4321"},
    ]


@pytest.mark.parametrize(
    ("file", "converter"),
    [("alpaca_en_demo.json", converters.alpaca), ("glaive_toolcall_en_demo.json", converters.openhermes)],
)
def test_real_files_convert_whole_and_the_same_into_both_formats(
    assets: Callable[[str], Path], tmp_path: Path, file: str, converter: Callable[..., Any]
) -> None:
    source = str(assets("data") / "raw" / file)
    for name in ("out.jsonl", "out.parquet"):
        report = convert_file([source], tmp_path / name, converter)
        assert (report.written, report.skipped) == (len(open_rows([source])), 0)
    lines, table = open_rows([str(tmp_path / "out.jsonl")]), open_rows([str(tmp_path / "out.parquet")])
    for from_lines, from_table in zip(lines, table, strict=True):
        assert chat_messages(from_table["messages"]) == from_lines["messages"]
        assert from_table.get("tools") == from_lines.get("tools")


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


HETEROGENEOUS = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call("f", x=1, y=None), call("g", x="text")]},
            {"role": "tool", "content": "ok", "tool_call_id": "7"},
            {"role": "assistant", "content": "done", "step_loss_mask": 0},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "integer"}}}}],
        "label": 3,
        "metadata": {"level": [1, {"deep": None}]},
    },
    {
        "messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "", "tool_calls": [call("h")]}],
        "label": "three",
    },
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "c"}]}], "score": 0.5, "good": True},
]


def test_both_formats_read_back_exactly_what_was_converted(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", HETEROGENEOUS)
    for name in ("out.jsonl", "out.parquet"):
        convert_file([source], tmp_path / name, converters.messages)
    from_lines = list(open_rows([str(tmp_path / "out.jsonl")]))
    from_table = list(open_rows([str(tmp_path / "out.parquet")]))
    assert from_lines == HETEROGENEOUS
    columns = {"messages", "tools", "label", "metadata", "score", "good"}
    assert [set(row) for row in from_table] == [columns] * 3
    without_nulls = [{key: value for key, value in row.items() if value is not None} for row in from_table]
    for row in without_nulls:
        row["messages"] = chat_messages(row["messages"])
    assert without_nulls == HETEROGENEOUS


def test_a_converted_parquet_file_converts_again_to_itself(tmp_path: Path) -> None:
    convert_file([write(tmp_path / "in.jsonl", HETEROGENEOUS)], tmp_path / "1.parquet", converters.messages)
    convert_file([str(tmp_path / "1.parquet")], tmp_path / "2.parquet", converters.messages)
    assert list(open_rows([str(tmp_path / "1.parquet")])) == list(open_rows([str(tmp_path / "2.parquet")]))


BROKEN = [hermes(("human", "x"), ("gpt", "y")), "{", hermes(("alien", "x")), hermes(), hermes(("gpt", "z"))]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            BROKEN[:2],
            "2: not valid JSON at column 2: Expecting property name enclosed in double quotes. "
            "Expected one object; repair or remove the row.",
        ),
        (
            BROKEN[2:3],
            "1: turn 1 is from 'alien'; expected one of human, user, gpt, assistant, system, tool, observation, "
            "function_call.",
        ),
        (BROKEN[3:4], "1: the messages are [], expected a list of at least one message."),
    ],
)
def test_a_bad_row_stops_the_conversion_with_file_and_row_and_leaves_nothing(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    source = write(tmp_path / "in.jsonl", rows)
    for name in ("out.jsonl", "out.parquet"):
        with pytest.raises(DataError) as caught:
            convert_file([source], tmp_path / name, converters.openhermes)
        assert str(caught.value) == f"{source}:{message}"
    assert files_in(tmp_path) == ["in.jsonl"]


def test_an_output_that_exists_survives_a_conversion_that_fails(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", BROKEN)
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(DataError):
        convert_file([source], tmp_path / "out.jsonl", converters.openhermes)
    assert (tmp_path / "out.jsonl").read_text() == "before"


def test_skipped_rows_are_counted_with_their_reasons(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", BROKEN)
    report = convert_file([source], tmp_path / "out.jsonl", converters.openhermes, on_error="skip")
    assert (report.written, report.skipped) == (2, 3)
    assert [reason.split(" ")[0] for reason in report.reasons] == [f"{source}:{row}:" for row in (2, 3, 4)]
    assert [row["messages"][0]["content"] for row in open_rows([str(tmp_path / "out.jsonl")])] == ["x", "z"]


def test_when_no_row_is_left_nothing_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", BROKEN[1:4])
    with pytest.raises(DataError, match=rf"None of the 3 rows could be converted\. The first: {source}:1: not valid"):
        convert_file([source], tmp_path / "out.jsonl", converters.openhermes, on_error="skip")
    assert files_in(tmp_path) == ["in.jsonl"]


def test_a_file_that_is_there_is_replaced_on_demand_alone(tmp_path: Path) -> None:
    """With the output forgotten, the last input would be it."""
    files = [write(tmp_path / name, HETEROGENEOUS) for name in ("a.jsonl", "b.jsonl")]
    before = Path(files[1]).read_text()
    for inputs in (files[:1], files):
        with pytest.raises(DataError, match=r"b\.jsonl is there already\..* replace it with --force"):
            convert_file(inputs, Path(files[1]), converters.messages)
    assert Path(files[1]).read_text() == before
    convert_file(files[:1], Path(files[1]), converters.messages, force=True)
    assert len(Path(files[1]).read_text().splitlines()) == len(HETEROGENEOUS)


def test_an_output_of_another_kind_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", BROKEN[:1])
    with pytest.raises(DataError, match=r"out\.csv: can write \.jsonl and \.parquet, not \.csv"):
        convert_file([source], tmp_path / "out.csv", converters.openhermes)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"text": "x"}, "the converter returned no 'messages'."),
        ({"messages": "x"}, 'the messages are "x", expected a list of at least one message.'),
        (
            {"messages": [{"role": "user", "content": "x"}], "label": b"x"},
            "the row.label is 'bytes', which JSON has no form for; expected numbers, text, true, false, null, lists and objects of them.",
        ),
    ],
)
def test_what_a_converter_of_ones_own_returns_is_checked(tmp_path: Path, made: dict, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [{}])
    with pytest.raises(DataError) as caught:
        convert_file([source], tmp_path / "out.jsonl", lambda row: made)
    assert str(caught.value) == f"{source}:1: {message}"


def test_a_converter_that_breaks_is_told_the_row(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{}])
    with pytest.raises(KeyError) as caught:
        convert_file([source], tmp_path / "out.jsonl", lambda row: row["text"])
    assert caught.value.__notes__ == [f"while converting {source}:1"]
