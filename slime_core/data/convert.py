"""`convert_file`: rows of any readable format, through a converter, into a `.jsonl` or `.parquet` file of chat rows.

Behind `slime data convert`. Needs memory for a batch of rows, however large the input. The output appears whole or
not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slime_core.data.arrow import JSON_COLUMNS
from slime_core.data.conversation import chat_row
from slime_core.data.converted_images import ConvertedImages
from slime_core.data.images import NO_RULES, ImageRules
from slime_core.data.jsonl import JsonLinesFile
from slime_core.data.notices import Notices
from slime_core.data.rows import open_rows
from slime_core.data.samples import Columns, require_unread_without_effect, sample_from_row
from slime_core.errors import DataError
from slime_core.plain import plain
from slime_core.unfinished import unfinished

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 4096  # rows
_KEPT_REASONS = 10
_CONVERTED = Columns("messages", None, "tools", "metadata")

Converter = Callable[[dict[str, Any]], dict[str, Any]]
"""A converter, called as `slime_core.contracts.data.convert`."""


@dataclass
class Converted:
    """The report of `convert_file`.

    Attributes:
        written, skipped: how many rows were written and left out.
        reasons: why rows were skipped, with file and row; the first ten.
    """

    written: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)


def convert_file(
    inputs: Sequence[str],
    output: Path,
    convert: Converter,
    on_error: Literal["error", "skip"] = "error",
    say: Callable[[str], None] | None = None,
    image_key: str | None = None,
    image_rules: ImageRules = NO_RULES,
    force: bool = False,
) -> Converted:
    """Convert all rows of `inputs`.

    Args:
        inputs: what `open_rows` takes.
        output: ends in `.jsonl` or `.parquet`.
        convert: the converter, a `slime_core.contracts.data.convert`.
        on_error: what to do with a row that cannot be converted: stop, or leave it out and count it.
        say: is told, once per file, of columns that the converter does not read; by default they are logged.

        image_key: the column of images of the rows, read and written; None: `<image>` in a text is text.
        image_rules: where images may come from.
        force: a file that is called like `output` is replaced.

    Raises:
        DataError: a row cannot be converted (names file and row), no row is left, or `output` is there already or cannot be written.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{output}: can write .jsonl and .parquet, not {output.suffix or 'a file without extension'}.")
    if output.exists() and not force:
        raise DataError(
            f"{output} is there already. The last file that is named is the one to write: name another, or replace it with --force."
        )
    report, shape = Converted(), _Shape()
    images = ConvertedImages(output.parent, image_key, image_rules)
    lines, table = unfinished(output, ".jsonl"), unfinished(output, ".parquet")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with lines.open("w", encoding="utf-8") as file:
            for row in _converted_rows(inputs, convert, on_error, report, Notices(say), images):
                shape.add(row)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not report.written:
            raise DataError(f"None of the {report.skipped} rows could be converted. The first: {report.reasons[0]}")
        if output.suffix == ".parquet":
            _write_parquet(lines, table, shape)
            table.replace(output)
        else:
            lines.replace(output)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}.") from None
    finally:
        for hidden in (lines, table):
            with suppress(FileNotFoundError):
                hidden.unlink()
    return report


def _converted_rows(
    inputs: Sequence[str],
    convert: Converter,
    on_error: str,
    report: Converted,
    notices: Notices,
    images: ConvertedImages,
) -> Iterator[dict[str, Any]]:
    rows = open_rows(inputs)
    for index in range(len(rows)):
        try:
            yield _convert_one(convert, rows[index], rows.where(index), notices, images)
            report.written += 1
        except Exception as error:
            if on_error == "error":
                raise
            report.skipped += 1
            if len(report.reasons) < _KEPT_REASONS:
                report.reasons.append(_reason(error, rows.where(index)))


def _convert_one(
    convert: Converter, row: dict[str, Any], source: str, notices: Notices, images: ConvertedImages
) -> dict[str, Any]:
    """Return the converted row in the one form that reads back the same from both output formats."""
    watched = ReadRow(row)
    try:
        made = convert(watched)
        if not isinstance(made, dict) or "messages" not in made:
            raise DataError("the converter returned no 'messages'")
        made, shown = images.placed(made, row, Path(source.rpartition(":")[0]))
        made = plain(
            {**made, "messages": chat_row(plain(made["messages"], "the messages"), made.get("tools"))}, "the row"
        )
        require_unread_without_effect(row, watched.unread - made.keys(), made["messages"], "tools")
    except DataError as error:
        raise DataError(f"{source}: {str(error).rstrip('.')}.") from None
    except Exception as error:
        error.add_note(f"while converting {source}")
        raise
    if images.column is None:
        sample_from_row(_CONVERTED, made, source)
    else:
        watched.unread.discard(images.column)
        sample_from_row(replace(_CONVERTED, image_key=images.column), {**made, images.column: shown}, source)
    if watched.unread:
        notices.columns(source, watched.unread)
    try:
        json.dumps(made, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f"{source}: the converted row cannot be written as JSON: {error}.") from None
    return {
        key: value for key, value in made.items() if value is not None or key in row
    }  # a null that the row means stays


def _reason(error: Exception, source: str) -> str:
    """Return why a row is skipped; a converter may fail in every way that Python can."""
    return str(error) if isinstance(error, DataError) else f"{source}: {type(error).__name__}: {error}"


class ReadRow(dict[str, Any]):
    """A row that remembers which of its columns were read.

    Attributes:
        unread: the columns that were not, yet.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.unread = {key for key, value in row.items() if value is not None}

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # an own one, so that {**row} goes through __getitem__

    def get(self, key: str, default: Any = None) -> Any:
        """As of any dict."""
        return self[key] if key in self else default  # noqa: SIM401  # marks it as read

    def values(self) -> Any:
        """As of any dict."""
        self.unread.clear()
        return super().values()

    def items(self) -> Any:
        """As of any dict."""
        self.unread.clear()
        return super().items()

    def pop(self, key: str, *default: Any) -> Any:
        """As of any dict."""
        self.unread.discard(key)
        return super().pop(key, *default)

    def copy(self) -> dict[str, Any]:
        """As of any dict."""
        return dict(self.items())


class _Shape:
    """Collects the kinds of values per column and per key of the messages, from which the Parquet schema follows.

    A column whose values are all text, all booleans or all numbers keeps that type. Anything else (tools, tool calls
    with their arguments, metadata, mixed types) is stored as JSON text and listed in the schema's metadata, from
    which the reader decodes it: as nested columns, all arguments of all tools would be merged into one wide struct
    and read back with keys that the row never had.
    """

    def __init__(self) -> None:
        self.columns: dict[str, set[str]] = {}
        self.message_keys: dict[str, set[str]] = {"role": set(), "content": set()}

    def add(self, row: dict[str, Any]) -> None:
        """Take the kinds of values of a row into account."""
        for key, value in row.items():
            if key != "messages":
                self.columns.setdefault(key, set()).update({_kind(value)} if value is not None else ())
        for message in row["messages"]:
            for key, value in message.items():
                if value is not None:
                    self.message_keys.setdefault(key, set()).add(_kind(value))

    def schema(self) -> pa.Schema:
        """Return the schema of the Parquet file."""
        import pyarrow as pa

        types = {"string": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        message = pa.struct([(key, types[_stored(kinds)]) for key, kinds in self.message_keys.items()])
        columns = [("messages", pa.list_(message))]
        columns += [(key, types[_stored(kinds)]) for key, kinds in self.columns.items()]
        as_json = [[key] for key, kinds in self.columns.items() if _is_json(kinds)]
        as_json += [["messages", key] for key, kinds in self.message_keys.items() if _is_json(kinds)]
        return pa.schema(columns, metadata={JSON_COLUMNS: json.dumps(as_json).encode()})

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with its JSON columns as text."""
        messages = [_encoded(message, self.message_keys) for message in row["messages"]]
        return {"messages": messages, **_encoded({k: v for k, v in row.items() if k != "messages"}, self.columns)}


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -(2**63) <= value < 2**63 else "json"
    return {str: "string", bool: "bool", float: "float"}.get(type(value), "json")


def _is_json(kinds: set[str]) -> bool:
    return len(kinds) > 1 or "json" in kinds


def _stored(kinds: set[str]) -> str:
    return "string" if _is_json(kinds) or not kinds else next(iter(kinds))


def _encoded(values: dict[str, Any], kinds: dict[str, set[str]]) -> dict[str, Any]:
    return {
        key: json.dumps(value, ensure_ascii=False) if value is not None and _is_json(kinds[key]) else value
        for key, value in values.items()
    }


def _write_parquet(lines: Path, output: Path, shape: _Shape) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, schema = JsonLinesFile(lines), shape.schema()
    with pq.ParquetWriter(output, schema) as writer:
        for start in range(0, len(rows), _BATCH):
            batch = [shape.encode(rows.read(i)) for i in range(start, min(start + _BATCH, len(rows)))]
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
