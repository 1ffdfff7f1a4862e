"""What the values of an Arrow column mean, as plain JSON data. Called by `ArrowFile`.

Arrow stores values by type, and pyarrow gives some of them otherwise than they are meant: JSON as its source text, maps as
lists of pairs, numbers of the database as `Decimal`, and structs with a null for every key that another row has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slime_core.errors import DataError
from slime_core.plain import plain, read_json

if TYPE_CHECKING:
    import pyarrow as pa

Meaning = Callable[[Any], Any]
"""From what pyarrow gives for a value that is not null to what it means."""

_EXTENSION_NAME = b"ARROW:extension:name"
_JSON = "arrow.json"


def meaning(field: pa.Field, json_fields: frozenset[str] = frozenset(), is_json: bool = False) -> Meaning | None:
    """Return what makes plain data of the values of a column; None where pyarrow's own is that already.

    * JSON, in Arrow's extension type `arrow.json` or a text column that is said to hold it, is read, with its nulls.
    * Keys that are null in a struct are left out: Arrow gives all structs of a column the same keys and pads with nulls.
    * A map is an object; a null in it is meant.
    * Numbers of 16 and 32 bits with a point are the shortest decimal that they stand for: 0.1, not 0.10000000149011612.
    * Dictionary-encoded values are the values. Dates and times are ISO 8601 text, durations seconds, decimals text as it
      is written, or whole numbers where the type has no places.

    Args:
        json_fields: keys of the structs in the column whose text holds JSON.
        is_json: the column's own text holds JSON.

    Raises:
        DataError: from the function that is returned, JSON that is not valid; without file and row.
    """
    import pyarrow as pa

    kind = field.type
    if is_json or _extension(field) == _JSON:
        return read_json
    if isinstance(kind, pa.BaseExtensionType):
        return meaning(pa.field(field.name, kind.storage_type), json_fields) or plain_value
    if pa.types.is_struct(kind):
        return _struct({child.name: meaning(child, is_json=child.name in json_fields) for child in kind})
    if pa.types.is_map(kind):
        return _map(meaning(kind.key_field), meaning(kind.item_field))
    if _is_list(kind):
        return _list(meaning(kind.value_field, json_fields))
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return meaning(pa.field(field.name, kind.value_type), json_fields)
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return _shortest(kind)
    return None if _is_plain(kind) else plain_value


def plain_value(value: Any) -> Any:
    """Return a value as plain data, but bytes as they are: a column that nobody reads may hold them."""
    return value if isinstance(value, bytes) else plain(value, "a value")


def _extension(field: pa.Field) -> str:
    """Return the name of a field's extension type, also of one that this pyarrow does not know; "" for none."""
    name = getattr(field.type, "extension_name", None)
    return str(name) if name else (field.metadata or {}).get(_EXTENSION_NAME, b"").decode(errors="replace")


def _shortest(kind: pa.DataType) -> Meaning:
    narrow = kind.to_pandas_dtype()  # numpy's type
    return lambda value: float(str(narrow(value)))


def _struct(meanings: dict[str, Meaning | None]) -> Meaning:
    changed = {key: of for key, of in meanings.items() if of is not None}

    def read(value: dict[str, Any]) -> dict[str, Any]:
        made = {key: inner for key, inner in value.items() if inner is not None}
        for key, of in changed.items():
            if key in made:
                made[key] = of(made[key])
        return made

    return read


def _list(of: Meaning | None) -> Meaning | None:
    if of is None:
        return None
    return lambda value: [None if inner is None else of(inner) for inner in value]


def _map(key_of: Meaning | None, value_of: Meaning | None) -> Meaning:
    def read(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        keys = [key_of(key) if key_of else key for key, _ in pairs]
        texts = [key if isinstance(key, str) else str(key) for key in keys]
        if len(set(texts)) < len(texts):
            raise DataError("a map has the same key twice")
        values = [value if value is None or value_of is None else value_of(value) for _, value in pairs]
        return dict(zip(texts, values, strict=True))

    return read


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    names = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(pa.types, name)(kind) for name in names if hasattr(pa.types, name))


def _is_plain(kind: pa.DataType) -> bool:
    import pyarrow as pa

    names = ("is_string", "is_large_string", "is_string_view", "is_integer", "is_floating", "is_boolean", "is_null")
    return any(getattr(pa.types, name)(kind) for name in names if hasattr(pa.types, name))
