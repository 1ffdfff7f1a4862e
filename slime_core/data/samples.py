"""A row becomes a `Sample`. Pure functions, called by the data sources, by evaluation sets and by the mask preview."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slime_core.data.conversation import chat_messages, shown
from slime_core.data.tokens import is_tokenised, token_ids, trained_tokens
from slime_core.errors import DataError, did_you_mean
from slime_core.sample import Sample

if TYPE_CHECKING:
    from slime_core.arguments.groups.data import DataArguments


@dataclass(frozen=True)
class Columns:
    """The names of a row's columns; None where there is no such column.

    Attributes:
        input_key: the prompt: text, messages or token ids.
        label_key: what rewards compare with.
        tool_key: the tool definitions of a conversation; rows may lack it.
        metadata_key: an object that is handed on to hooks; rows may lack it.
    """

    input_key: str
    label_key: str | None = None
    tool_key: str | None = None
    metadata_key: str | None = None

    @classmethod
    def of(cls, args: DataArguments) -> Columns:
        """Return the columns of the training data, `--input-key` and so on."""
        return cls(args.input_key, args.label_key, args.tool_key, args.metadata_key)


def sample_from_row(columns: Columns, row: dict[str, Any], source: str) -> Sample:
    """Return the sample of one row, without its numbers.

    Args:
        columns: which columns to read. A row must have those of prompt and label.
        source: "file:row"; kept as `metadata["source"]`.

    Returns:
        Sample with `prompt` (text, checked messages or token ids, whichever the column holds), `label`, and `metadata`:
        the row's own, `source`, and `tools` if there are any. With token ids, `loss_mask` has an entry for every one of
        them if the row says which are trained.

    Raises:
        DataError: a key is missing, or its value is not what it should be; the message begins with `source`.
    """
    try:
        prompt = _value(row, columns.input_key, "--input-key")
        loss_mask = None
        if is_tokenised(prompt):
            prompt, loss_mask = token_ids(prompt), trained_tokens(row, prompt, columns.label_key)
        elif isinstance(prompt, list):
            prompt = chat_messages(prompt)
        elif not (isinstance(prompt, str) and prompt.strip()):
            raise DataError(f"{columns.input_key!r} is {shown(prompt)}, expected text or a list of messages")
        label = _value(row, columns.label_key, "--label-key") if columns.label_key else None
        metadata = _parsed(row, columns.metadata_key, dict) or {}
        tools = _parsed(row, columns.tool_key, list)
    except DataError as error:
        raise DataError(f"{source}: {error}.") from None
    metadata = {**metadata, "source": source, **({"tools": tools} if tools else {})}
    return Sample(prompt=prompt, label=label, loss_mask=loss_mask, metadata=metadata)


def _value(row: dict[str, Any], key: str, option: str) -> Any:
    if key not in row:
        keys = [str(known) for known in row]
        raise DataError(
            f"the row has no key {key!r}; it has {', '.join(map(repr, keys)) or 'no key at all'}."
            f"{did_you_mean(key, keys)} Choose one with {option}"
        )
    return row[key]


def _parsed(row: dict[str, Any], key: str | None, kind: type) -> Any:
    """Return an optional list or object, which may also be given as JSON text."""
    value = row.get(key) if key else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{key!r} is text but not valid JSON ({error})") from None
    if value is not None and not isinstance(value, kind):
        expected = "a list of tools" if kind is list else "an object"
        raise DataError(f"{key!r} is {shown(value)}, expected {expected} or JSON text of one")
    return value
