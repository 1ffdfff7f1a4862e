"""Bad data files end in messages that say what is wrong where, and what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slime_core.data import open_rows
from slime_core.errors import DataError

GOOD = '{"messages": [{"role": "user", "content": "hi"}]}'

BAD = [
    # file, content, spec, message ({p} is the folder)
    ("train.jsonl", GOOD, "{p}/trian.jsonl", "There is no file {p}/trian.jsonl. Did you mean 'train.jsonl'?"),
    ("train.jsonl", GOOD, "{p}/x", "There is no file {p}/x. The folder {p} holds train.jsonl."),
    (
        "data/a.jsonl",
        GOOD,
        "{p}/dat/a.jsonl",
        "There is no file {p}/dat/a.jsonl. The folder {p}/dat does not exist. Did you mean 'data'?",
    ),
    ("a.jsonl", GOOD, "{p}/*.parquet", "No file matches {p}/*.parquet. The folder {p} holds a.jsonl."),
    ("a.jsonl", "", "{p}/a.jsonl", "{p}/a.jsonl is empty; expected at least one row."),
    ("a.jsonl", "\n \n", "{p}/a.jsonl", "{p}/a.jsonl holds no row; expected at least one."),
    ("a.json", "[ ]", "{p}/a.json", "{p}/a.json holds no row; expected at least one."),
    (
        "a.csv",
        GOOD,
        "{p}/a.csv",
        "{p}/a.csv: the extension .csv is unknown; expected one of .jsonl, .json, .parquet, .arrow, .feather, "
        "or a folder written by datasets.save_to_disk. Rename the file if its content is one of these.",
    ),
    (
        "a.jsonl",
        GOOD,
        "{p}/a.jsonl@[1:2:3]",
        "{p}/a.jsonl@[1:2:3]: [1:2:3] is not a slice of rows. Write path@[start:end] with whole numbers; "
        "either may be left out, and negative ones count from the end.",
    ),
    ("a.jsonl", GOOD, "{p}/a.jsonl@[5:]", "{p}/a.jsonl@[5:] selects no row: {p}/a.jsonl has 1."),
    (
        "a.jsonl",
        GOOD + '\n{"messages": [}',
        "{p}/a.jsonl",
        "{p}/a.jsonl:2: not valid JSON at column 15: Expecting value. Expected one object; repair or remove the row.",
    ),
    (
        "a.jsonl",
        GOOD[:-5],
        "{p}/a.jsonl",
        "{p}/a.jsonl:1: not valid JSON at column 43: Unterminated string starting at. "
        "Expected one object; repair or remove the row.",
    ),
    (
        "a.jsonl",
        "[1]",
        "{p}/a.jsonl",
        '{p}/a.jsonl:1: the row is a list, expected an object like {{"messages": [...]}}; repair or remove it.',
    ),
    (
        "a.jsonl",
        gzip.compress(GOOD.encode(), mtime=0),
        "{p}/a.jsonl",
        "{p}/a.jsonl is compressed by gzip; expected lines of JSON. Unpack it, or name it a.jsonl.gz and choose "
        "--data-source-path streaming.",
    ),
    (
        "a.jsonl",
        b'{"a": "\xff"}',
        "{p}/a.jsonl",
        "{p}/a.jsonl:1: not valid UTF-8 at byte 7 of the row: invalid start byte. "
        "Expected one object; repair or remove the row.",
    ),
    (
        "a.jsonl",
        '{"a": "\\ud800"}',
        "{p}/a.jsonl",
        "{p}/a.jsonl:1: holds half of a surrogate pair (\\ud800 … \\udfff), which is no character. "
        "Expected one object; repair or remove the row.",
    ),
    (
        "d/a.jsonl",
        GOOD,
        "{p}/d",
        "{p}/d is a folder without a saved dataset (no state.json); expected one written by datasets.save_to_disk, "
        "or name files, such as '{p}/d/*.jsonl'.",
    ),
    (
        "d/dataset_dict.json",
        '{"splits": ["train", "test"]}',
        "{p}/d",
        "{p}/d holds the splits train, test; name one of them, such as {p}/d/train.",
    ),
    (
        "d/state.json",
        '{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}',
        "{p}/d",
        "{p}/d was saved with an indices file, so its Arrow files hold other rows than the dataset. "
        "Save it again: load_from_disk(folder).flatten_indices().save_to_disk(new_folder).",
    ),
]


@pytest.mark.parametrize(("file", "content", "spec", "message"), BAD)
def test_bad_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str | bytes, spec: str, message: str
) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(open_rows([spec.format(p=tmp_path)]))
    assert str(caught.value) == message.format(p=tmp_path)


@pytest.mark.parametrize(
    ("content", "row", "problem"),
    [
        ('[{"a": 1}, {"b": 2 "c"}]', 2, "not valid JSON: "),
        ('[{"a": 1}, {"b": 2}', 3, "not valid JSON: "),
        ('[{"a": 1}, {"b": "x', 2, "not valid JSON: "),
        ('[{"a": 1}, {"b": "x\ny"}]', 2, "not valid JSON: "),
        ('[{"a": 1} {"b": 2}]', 2, "not valid JSON: "),
        ('[{"a": 1}, ]', 2, "not valid JSON: "),
        ("[{}] x", 2, "not valid JSON: "),
        ('[{"a": 1}][{"b": 2}]', 2, "not valid JSON: "),
        ('[{"a": 1}, 7]', 2, r"found a number in the place of an object\. "),
        ('[{"a": 1}, "}{}", {}]', 2, r"found a string in the place of an object\. "),
        ('[{"a": 1}, null, {}]', 2, r"found null in the place of an object\. "),
        ('[[{"a": 1}], {}]', 1, r"found a list in the place of an object\. "),
    ],
)
def test_a_broken_array_is_named_with_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, row: int, problem: str
) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.json"
    path.write_text(content)
    for _ in range(2):  # nothing of it is left in the cache
        with pytest.raises(
            DataError,
            match=rf"^{path}:{row}: {problem}.*Expected one array of objects, \[{{…}}, {{…}}\]; repair the file\.$",
        ):
            open_rows([str(path)])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_a_broken_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))
    path = tmp_path / name
    table = pa.Table.from_pylist([{"a": 1}])
    if name == "a.parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    for broken in (path.read_bytes()[:-30], b"nonsense" * 10):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"^{path} cannot be read"):
            open_rows([str(path)])


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))
    pq.write_table(pa.Table.from_pylist([{"a": 1}]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet could not be copied into the cache folder .* Set SLIME_CACHE"):
        open_rows([str(tmp_path / "a.parquet")])


def test_a_malformed_row_does_not_hinder_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 3}\n')
    rows = open_rows([str(path)])
    assert [rows[0], rows[2]] == [json.loads('{"a": 1}'), {"a": 3}]
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON at column 1"):
        rows[1]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\\ud83d\\ude00"}')
    assert open_rows([str(tmp_path / "a.jsonl")])[0] == {"a": "😀"}
