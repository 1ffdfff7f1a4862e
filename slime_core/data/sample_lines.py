"""Samples as JSON lines: dumps that are asked for by such a name, those of older versions, and the answers of evaluations. Called by
`slime_core.rollout.debug_data` and `slime samples`, through `open_samples`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slime_core.data.arrow_messages import MAGIC
from slime_core.data.sample_columns import StoredSample
from slime_core.data.sample_files import SampleFile
from slime_core.errors import DataError, SampleError
from slime_core.plain import read_json
from slime_core.sample import Sample
from slime_core.token_columns import TokenColumn, column_of_floats

_KNOWN = Sample.__dataclass_fields__.keys() | {"group", "attributes"}


class SampleLines:
    """A file of JSON lines, of which each holds a sample. The first may hold the metrics of the rollout instead.

    Args:
        path: it is read while it is iterated over.

    Attributes:
        head: what the first line holds, if it is no sample: `{"metrics": …}`.
        rows: the names of what lines hold besides the fields of samples, as far as the first sample has it.

    Raises:
        DataError: it holds something else.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            raise DataError(f"{path} is empty.")
        self.head: dict[str, Any] = first[1] if first[1].keys() == {"metrics"} else {}
        line = next(lines, None) if self.head else first
        self.rows = sorted(line[1].keys() - _KNOWN) if line else []

    def read(self, first: int = 0) -> Iterator[StoredSample]:
        """Yield the samples from one on, counted from 0.

        Raises:
            DataError: a line holds something else; names file and line.
        """
        place = 0
        for number, line in self._lines():
            if self.head and line.keys() == {"metrics"}:
                continue
            if place >= first:
                try:
                    yield _stored(line)
                except (SampleError, DataError, TypeError, ValueError, AttributeError) as error:
                    raise DataError(f"{self.path}:{number} holds no sample: {error}") from None
            place += 1

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with self.path.open(encoding="utf-8", newline="\n") as file:
                for number, text in enumerate(file, 1):
                    if not text.strip():
                        continue
                    try:
                        line = read_json(text, halves=True)
                    except DataError as error:
                        raise DataError(f"{self.path} holds no samples: line {number} is {error}.") from None
                    if not isinstance(line, dict):
                        raise DataError(f"{self.path} holds no samples: line {number} is no JSON object.")
                    yield number, line
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is neither a file of samples nor text ({error.reason}).") from None


def is_json(path: Path) -> bool:
    """Whether samples in a file of this name are written as JSON lines, for people and programs that read those."""
    return path.suffix.lower() in (".jsonl", ".json")


def open_samples(path: Path) -> SampleFile | SampleLines:
    """Open a file of samples, of either kind. Its content says which, whatever it is called.

    Raises:
        DataError: it is neither.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(MAGIC):
        return SampleFile(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        raise DataError(
            f"{path} is a file of torch or a pickle, as slime itself writes them; reading one may execute what stands in it, so it is not read. "
            "Make a dump here, with --save-debug-rollout-data and --debug-rollout-only."
        )
    return SampleLines(path)


def _are_numbers(value: Any) -> bool:
    return type(value) is list and {int, float}.issuperset(map(type, value))


def _stored(line: dict[str, Any]) -> StoredSample:
    """Make the sample of a line: of a dump, or of what was trained, whose lines have numbers of every token besides."""
    if "tokens" not in line:
        raise SampleError(
            "it has no tokens. `slime data preview FILE --hf-checkpoint MODEL` shows rows of data; samples are what "
            "--save-debug-rollout-data writes"
        )
    own = {name: value for name, value in line.items() if name in _KNOWN and name != "group"}
    others = {name: value for name, value in line.items() if name not in _KNOWN}
    if wrong := sorted(name for name, value in others.items() if not _are_numbers(value)):
        raise SampleError(f"Sample does not know the fields {', '.join(wrong)}")
    rows: dict[str, TokenColumn[float]] = {name: column_of_floats(value) for name, value in others.items()}
    group = line.get("group")
    if type(group) is not int and "group" in line:
        raise SampleError(f"its group is {group!r}, expected a number")
    return StoredSample(Sample.from_dict(own), group, rows)
