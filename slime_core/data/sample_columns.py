"""Samples as record batches of Arrow, and back. Called by `slime_core.data.sample_files`, which says what the columns are.

A field stands in its column where it has the type of that, in `further` (JSON) otherwise, so nothing that a hook has left changes
on the way. Lists of 64 numbers or more inside of free-form data stand in the columns `ints` and `floats`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from slime_core.data.arrow_messages import damaged
from slime_core.data.beside_json import put_back, taken_out
from slime_core.errors import DataError, SampleError
from slime_core.plain import plain, read_json
from slime_core.sample import Sample
from slime_core.token_columns import COLUMNS, TokenColumn

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Rows = Sequence[Sequence[float]]
"""For every sample a row of numbers, such as the advantages of its tokens."""

LONG = 64
"""Lists of so many numbers are not written as JSON."""

_TEXTS = ("prompt", "response", "label")
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("index", "group_index", "rollout_id", "response_length"), int),
    "reward": float,
    "remove_sample": bool,
}
_TOKENS = ("tokens", "loss_mask", "rollout_log_probs")
_WITHOUT = ("metadata", "further")
_MAX_INT = 1 << 63


@dataclass(frozen=True)
class StoredSample:
    """A sample of a file.

    Attributes:
        group: the number of its group in the file; None where the file has no groups.
        rows: its numbers in the file's further columns, by their names.
    """

    sample: Sample
    group: int | None = None
    rows: dict[str, TokenColumn[float]] = field(default_factory=dict)


TokenColumns = dict[str, "TokenColumn[Any] | None"]
"""The fields of a sample that have a value for each token; None where a field is not there, or holds what no column can."""


def token_columns(sample: Sample) -> TokenColumns:
    """The fields of a sample that have a value for each token, as columns."""
    return {name: _column(sample, name) for name in COLUMNS}


def snapshot(sample: Sample) -> Sample:
    """A copy that keeps what the sample is now, whatever becomes of that. Images, which nobody changes, are shared."""
    other = copy.copy(sample)
    for name, value in vars(sample).items():
        found = _column(sample, name) if name in COLUMNS else None
        vars(other)[name] = list(value) if name == "images" else copy.deepcopy(value) if found is None else found
    return other


def schema_for(columns: Sequence[TokenColumns], rows: Iterable[str], head: dict[bytes, bytes]) -> pa.Schema:
    """The schema of a file of samples: token ids have 8 bytes where 4 do not suffice, log-probs where 4 would lose bits.

    Args:
        columns: of `token_columns`, for each sample.
        rows: the names of further columns.
        head: the metadata of the schema.
    """
    types = {name: {own.array.dtype.str[1:] for one in columns if (own := one[name])} for name in _TOKENS}
    return _schema("i8" in types["tokens"], "f8" in types["rollout_log_probs"], rows, head)


def _schema(wide: bool, exact: bool, rows: Iterable[str], head: dict[bytes, bytes]) -> pa.Schema:
    import pyarrow as pa

    fields = {
        "group": pa.int64(),
        **dict.fromkeys(("index", "group_index", "rollout_id"), pa.int64()),
        "status": pa.string(),
        "prompt": pa.string(),
        "response": pa.string(),
        "label": pa.string(),
        "reward": pa.float64(),
        "response_length": pa.int64(),
        "remove_sample": pa.bool_(),
        "tokens": pa.list_(pa.int64() if wide else pa.int32()),
        "loss_mask": pa.list_(pa.uint8()),
        "rollout_log_probs": pa.list_(pa.float64() if exact else pa.float32()),
        "weight_versions": pa.list_(pa.uint8()),
        "weight_version_names": pa.string(),
        "images": pa.list_(pa.binary()),
        "images_of": pa.int64(),
        "metadata": pa.string(),
        "further": pa.string(),
        "ints": pa.list_(pa.list_(pa.int64())),
        "floats": pa.list_(pa.list_(pa.float64())),
        **{_ROWS + name: pa.list_(pa.float64()) for name in rows},
    }
    return pa.schema(list(fields.items()), metadata=head)


_ROWS = "train_"
"""What the names of further columns begin with, so that none takes that of a field."""


def require_schema(schema: pa.Schema) -> list[str]:
    """Return the names of the further columns.

    Raises:
        DataError: the file has other columns than files of samples.
    """
    try:
        rows = [name.removeprefix(_ROWS) for name in schema.names if name.startswith(_ROWS)]
    except UnicodeDecodeError as error:
        raise damaged(error) from None
    types = [_schema(wide, exact, rows, {}) for wide in (False, True) for exact in (False, True)]
    if not any(schema.equals(known) for known in types):
        raise DataError("its columns are not those of a file of samples")
    return rows


class SampleWriter:
    """Makes record batches of samples, in the order of a file.

    Args:
        schema: of `schema_for`.

    Attributes:
        size: bytes of the tokens, texts and images that were added since the last batch, about. No column of a batch may have more than
            2 GiB.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.size = 0
        self._schema = schema
        self._images: dict[tuple[bytes, ...], int] = {}
        self._added = 0
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}

    def batch(self) -> pa.RecordBatch:
        """Return what was added since the last one."""
        import pyarrow as pa

        columns, self._columns, self.size = self._columns, {name: [] for name in self._schema.names}, 0
        made = []
        for one in self._schema:
            kind = one.type
            flat = pa.types.is_list(kind) and pa.types.is_primitive(kind.value_type)
            made.append(_list_array(columns[one.name], kind) if flat else pa.array(columns[one.name], kind))
        return pa.RecordBatch.from_arrays(made, schema=self._schema)

    def add(self, sample: Sample, tokens: TokenColumns, group: int | None, rows: Mapping[str, Sequence[float]]) -> None:
        """Add the next sample.

        Args:
            tokens: what `token_columns` made of it.
            group: the number of its group.
            rows: its numbers in further columns.

        Raises:
            SampleError: a hook has left something in it that is no data; names it.
        """
        self._columns["group"].append(group)
        for name, row in rows.items():
            self._columns[_ROWS + name].append(_floats(row))
        try:
            self._add(sample, self._added, tokens)
        except DataError as error:
            raise SampleError(f"{sample.name}: {error}.") from None
        self._added += 1

    def _add(self, sample: Sample, number: int, tokens: TokenColumns) -> None:
        columns, own = self._columns, vars(sample)
        further: dict[str, Any] = {}
        beside = _Beside()

        def column(name: str, value: Any, fits: bool) -> None:
            columns[name].append(value if fits else None)
            if not fits and value is not None:
                further[name] = plain(value, name)

        for name in _TEXTS:
            column(name, own[name], _is_text(own[name]))
            self.size += len(columns[name][-1] or "")
        for name, kind in _NUMBERS.items():
            column(name, own[name], type(own[name]) is kind and (kind is not int or abs(own[name]) < _MAX_INT))
        columns["status"].append(sample.status.value)
        for name in _TOKENS:
            found = tokens[name]
            column(name, found.array if found is not None else own[name], found is not None)
            self.size += found.nbytes if found is not None else 0
        versions = tokens["weight_versions"]
        if versions is not None and versions.words is not None and len(versions.words) <= 256:
            columns["weight_versions"].append(versions.array)
            columns["weight_version_names"].append(json.dumps(versions.words))
        else:
            columns["weight_version_names"].append(None)
            column("weight_versions", own["weight_versions"], False)
        images = tuple(sample.images)
        before = self._images.setdefault(images, number) if images else number
        columns["images"].append(list(images) if before == number and images else None)
        columns["images_of"].append(None if before == number else before)
        self.size += sum(map(len, images)) if before == number else 0
        columns["metadata"].append(beside.json(plain(sample.metadata, "metadata")))
        attributes = {name: plain(value, name) for name, value in sample.further_attributes.items()}
        if attributes:
            further["attributes"] = attributes
        columns["further"].append(beside.json(further) if further else None)
        self.size += len(columns["metadata"][-1]) + len(columns["further"][-1] or "")
        columns["ints"].append(beside.ints or None)
        columns["floats"].append(beside.floats or None)


class _Beside:
    """The long lists of numbers of one sample's free-form data."""

    def __init__(self) -> None:
        self.ints: list[list[int]] = []
        self.floats: list[list[float]] = []

    def json(self, value: Any) -> str:
        """The text of the data, without them."""
        return json.dumps(taken_out(value, self._take))

    def _take(self, value: Any) -> tuple[str, int] | None:
        if type(value) is not list or len(value) < LONG:
            return None
        kinds = set(map(type, value))
        if kinds == {float}:
            self.floats.append(value)
            return "floats", len(self.floats) - 1
        if kinds == {int} and min(value) >= -_MAX_INT and max(value) < _MAX_INT:
            self.ints.append(value)
            return "ints", len(self.ints) - 1
        return None


def samples_of(
    batch: pa.RecordBatch, images: list[list[bytes]], rows: Sequence[str]
) -> Iterator[Callable[[], StoredSample]]:
    """Yield for each row of a batch what makes its sample, in their order.

    Args:
        batch: a validated batch of a file of samples.
        images: those of the rows before; those of this batch are added, one row with each step.
        rows: the names of the further columns.
    """
    batch_columns = {name: batch.column(name) for name in batch.schema.names}
    flat = (*_TOKENS, "weight_versions", *(_ROWS + name for name in rows))
    slices = {name: _slices(batch_columns[name], name) for name in flat}
    for name in ("ints", "floats", "images"):
        _require_values(batch_columns[name], name)
    plain = ("images", "images_of", "group", "status", *_TEXTS, *_NUMBERS, *_WITHOUT, "weight_version_names")
    try:
        given = {name: batch_columns[name].to_pylist() for name in plain}
    except ValueError as error:  # text that is no UTF-8
        raise DataError(f"it holds text that is none ({error})") from None
    for n in range(batch.num_rows):
        row = {name: values[n] for name, values in given.items()}
        images.append(_images_of(row, images))
        arrays = {name: values(n) for name, values in slices.items()}
        numbers = {name: batch_columns[name][n] for name in ("ints", "floats")}

        def make(
            row: dict[str, Any] = row, arrays: Any = arrays, numbers: Any = numbers, own: Any = images[-1]
        ) -> StoredSample:
            return _stored(row, arrays, numbers, own, rows)

        yield make


def _stored(
    row: dict[str, Any], arrays: dict[str, Any], numbers: dict[str, Any], images: list[bytes], rows: Sequence[str]
) -> StoredSample:
    gives = {name: _giver(found) for name, found in numbers.items()}
    further = put_back(_json(row["further"], "further"), gives)
    metadata = put_back(_json(row["metadata"], "metadata"), gives)
    own = {name: row[name] for name in (*_TEXTS, *_NUMBERS) if row[name] is not None}
    try:
        sample = Sample.from_dict({"status": row["status"], "metadata": metadata, **own, **further})
    except TypeError as error:
        raise DataError(f"it holds a sample that is none ({error})") from None
    sample.images = images[:]
    for name in _TOKENS:
        if arrays[name] is not None:
            setattr(sample, name, TokenColumn(arrays[name]))
    if arrays["weight_versions"] is not None:
        words = tuple(read_json(row["weight_version_names"] or "[]"))
        codes = arrays["weight_versions"]
        if not {int, str}.issuperset(map(type, words)) or (codes.size and int(codes.max()) >= len(words)):
            raise DataError("it names weight versions that it does not have")
        sample.weight_versions = TokenColumn(codes, words)  # type: ignore[assignment]  # reads like a list
    return StoredSample(sample, row["group"], {name: TokenColumn(arrays[_ROWS + name]) for name in rows})


def _column(sample: Sample, name: str) -> TokenColumn[Any] | None:
    """A field of a sample as a column; None where it is not there, or holds what no column can."""
    values = vars(sample)[name]
    if values is None or type(values) is TokenColumn:
        return values
    try:
        return COLUMNS[name](values) if type(values) is list else None  # `bytearray` makes other bytes of an array
    except (TypeError, ValueError, OverflowError):
        return None


def _is_text(value: Any) -> bool:
    if type(value) is not str:
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _floats(row: Sequence[float]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.asarray(row, dtype=np.float64)


def _list_array(arrays: list[Any], kind: pa.DataType) -> pa.Array:
    """Make a list array of one array for each row; None is null."""
    import numpy as np
    import pyarrow as pa

    dtype = kind.value_type.to_pandas_dtype()
    present = [array for array in arrays if array is not None]
    values = np.concatenate(present, dtype=dtype) if present else np.empty(0, dtype)
    ends = np.cumsum([0, *(0 if array is None else array.size for array in arrays)], dtype=np.int32)
    missing = np.array([array is None for array in arrays], dtype=bool)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values), type=kind, mask=pa.array(missing))


def _require_values(column: pa.Array, name: str) -> None:
    """Refuse lists that hold nulls."""
    values = column.flatten()
    if values.null_count:
        raise DataError(f"its column {name!r} has lists with holes")
    if values.type.num_fields:
        _require_values(values, name)


def _slices(column: pa.Array, name: str) -> Callable[[int], Any]:
    """What returns the array of a row, None where it is null. The values are copied once, so nothing depends on the file."""
    _require_values(column, name)
    values = column.values.to_numpy(zero_copy_only=False).copy()
    values.flags.writeable = False
    offsets = column.offsets.to_numpy().tolist()
    present = column.is_valid().to_pylist()
    spans = list(pairwise(offsets))
    return lambda n: values[slice(*spans[n])] if present[n] else None


def _images_of(row: dict[str, Any], before: list[list[bytes]]) -> list[bytes]:
    place = row["images_of"]
    if place is None:
        return row["images"] or []
    if not 0 <= place < len(before):
        raise DataError("it refers to images of a row that is not before")
    return before[place]


def _giver(found: pa.Scalar) -> Callable[[int], Any]:
    def give(number: int) -> Any:
        if not found.is_valid or number >= len(found.values):
            raise LookupError
        return found.values[number].as_py()

    return give


def _json(text: str | None, name: str) -> dict[str, Any]:
    value = read_json(text, halves=True) if text is not None else {}
    if not isinstance(value, dict):
        raise DataError(f"its column {name!r} holds something else than objects")
    return value
