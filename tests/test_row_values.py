"""A value means the same wherever a row holds it, whatever file the row is in, and whoever reads it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slime_core.data import (
    Columns,
    EvaluationSet,
    GlobalDataSource,
    StreamingDataSource,
    convert_file,
    open_rows,
    read_conversation,
    sample_from_row,
)
from slime_core.sample import Sample

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a whole number": -3,
    "a large number": 10**30,
    "a fraction": 0.1,
    "text": "é 好 \U0001f9a5\n\t\"'\\",
    "empty text": "",
    "text that looks like a date": "2024-05-06",
    "text that looks like JSON": '{"a": null}',
    "a mixed list": [1, "a", None, True, [2.5], {}],
    "an object with nulls": {"a": None, "b": {"c": [None, {"d": None}]}},
    "an empty list": [],
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def row_with(place: str, value: Any) -> dict[str, Any]:
    """A row that holds the value in one place."""
    arguments = {"v": value} if place == "argument" else {}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    schema = {"type": "object", "properties": {"v": {"default": value}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}} if place == "schema" else TOOL
    return {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [call]}],
        "tools": [tool],
        "label": value if place == "label" else "x",
        "metadata": {"v": value} if place == "metadata" else {"v": 0},
    }


def value_in(place: str, sample: Sample) -> Any:
    """The value that a sample has in that place."""
    if place == "label":
        return sample.label
    if place == "metadata":
        return sample.metadata["v"]
    conversation = read_conversation(sample.prompt, sample.tools)
    if place == "argument":
        return conversation.messages[1]["tool_calls"][0]["function"]["arguments"]["v"]
    assert conversation.tools is not None
    return conversation.tools[0]["function"]["parameters"]["properties"]["v"]["default"]


def in_lines(folder: Path, row: dict[str, Any]) -> Path:
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder / "a.jsonl"


def in_an_array(folder: Path, row: dict[str, Any]) -> Path:
    (folder / "a.json").write_text(json.dumps([row], indent=1, ensure_ascii=False), encoding="utf-8")
    return folder / "a.json"


def in_json_columns(folder: Path, row: dict[str, Any]) -> Path:
    """As `datasets` writes mixed columns: Arrow's own type of JSON."""
    kind = pa.json_(pa.string())
    columns = {key: pa.ExtensionArray.from_storage(kind, pa.array([json.dumps(value)])) for key, value in row.items()}
    with pa.ipc.new_file(folder / "a.arrow", pa.table(columns).schema) as writer:
        writer.write_table(pa.table(columns))
    return folder / "a.arrow"


def in_json_text(folder: Path, row: dict[str, Any]) -> Path:
    """As people write Parquet: nested columns, with text of JSON where types are mixed."""
    messages = [dict(message) for message in row["messages"]]
    messages[1]["tool_calls"] = json.dumps(messages[1]["tool_calls"])
    columns = {"messages": [messages], "tools": [json.dumps(row["tools"])], "metadata": [json.dumps(row["metadata"])]}
    label = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array([json.dumps(row["label"])]))
    pq.write_table(pa.table({**columns, "label": label}), folder / "a.parquet")
    return folder / "a.parquet"


def converted(kind: str) -> Callable[[Path, dict[str, Any]], Path]:
    def write(folder: Path, row: dict[str, Any]) -> Path:
        convert_file([str(in_lines(folder, row))], folder / f"converted.{kind}", lambda row: {**row})
        return folder / f"converted.{kind}"

    return write


FILES: dict[str, Callable[[Path, dict[str, Any]], Path]] = {
    "JSON Lines": in_lines,
    "a JSON array": in_an_array,
    "Arrow's JSON": in_json_columns,
    "text of JSON in Parquet": in_json_text,
    "converted to JSON Lines": converted("jsonl"),
    "converted to Parquet": converted("parquet"),
}
PLACES = ("label", "metadata", "argument", "schema")
COLUMNS = Columns("messages", "label", "tools", "metadata")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", VALUES)
def test_a_value_means_the_same_in_every_place_file_and_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_arguments: Any, name: str, place: str, file: str
) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))
    path = FILES[file](tmp_path, row_with(place, VALUES[name]))
    args = default_arguments(path, input_key="messages", label_key="label")
    (row,) = open_rows([str(path)])
    read = {
        "preview": sample_from_row(COLUMNS, row, "f:1"),
        "training": GlobalDataSource(args).get_samples(1)[0][0],
        "evaluation": next(EvaluationSet("e", str(path), COLUMNS, "error").samples({})),  # type: ignore[arg-type]
    }
    if path.suffix == ".jsonl":
        packed = path.with_suffix(".jsonl.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        streamed = default_arguments(packed, input_key="messages", label_key="label")
        read["stream"] = StreamingDataSource(streamed).get_samples(1)[0][0]
    for reader, sample in read.items():
        found = value_in(place, sample)
        assert json.dumps(found) == json.dumps(VALUES[name]), reader
