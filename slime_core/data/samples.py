"""A row becomes a `Sample`. Pure functions, called by the data sources, by evaluation sets, by converters and by the mask
preview, so that all of them accept and refuse the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slime_core.arguments.groups.data import DataArguments
from slime_core.data.conversation import OTHER_MEDIA, chat_messages
from slime_core.data.flags import FLAGS
from slime_core.data.image_rows import PLACEHOLDER, take_images
from slime_core.data.images import NO_RULES, ImageRules, encoded
from slime_core.data.rows import LOOKED_AT, first_rows
from slime_core.data.shown import shown
from slime_core.data.tokens import is_tokenised, token_ids, trained_tokens
from slime_core.data.tools import from_json, tool_definitions
from slime_core.errors import DataError, did_you_mean
from slime_core.plain import plain
from slime_core.sample import RESERVED, Sample

Unread = Callable[[str, "set[str]"], None]
"""Told "file:row" and the columns of the row that nobody reads, such as `Notices.columns`."""

_OF_TOKENS = frozenset({"loss_mask", "labels", "attention_mask"})


@dataclass(frozen=True)
class Columns:
    """The names of a row's columns; None where there is no such column.

    Attributes:
        input_key: the prompt: text, messages or token ids.
        label_key: what rewards compare with.
        tool_key: the tool definitions of a conversation; rows may lack it.
        metadata_key: an object that is handed on to hooks; rows may lack it.
        image_key: the images of the row, one or a list; rows may lack it. With it, a prompt that is text and has images is one message
            of the user. None: `<image>` in a text is text.
        images: where images may come from.
        prefix: how the options of prompt and label begin.
    """

    input_key: str
    label_key: str | None = None
    tool_key: str | None = None
    metadata_key: str | None = None
    image_key: str | None = None
    images: ImageRules = NO_RULES
    prefix: str = "--"

    @classmethod
    def of(cls, args: DataArguments) -> Columns:
        """Return the columns of the training data, `--input-key` and so on."""
        rules = ImageRules(tuple(args.image_folders or ()), args.fetch_images)
        return cls(args.input_key, args.label_key, args.tool_key, args.metadata_key, _image_key(args), rules)


def sample_from_row(columns: Columns, row: dict[str, Any], source: str, unread: Unread | None = None) -> Sample:
    """Return the sample of one row, without its numbers.

    Args:
        columns: which columns to read. A row must have those of prompt and label.
        source: "file:row"; the sample's `source`.
        unread: is told of columns that nobody reads.

    Returns:
        Sample with `prompt` (text, checked messages or token ids, whichever the column holds), the `images` of messages, `label`,
        and the row's own `metadata`, where its tools stand under "tools" unless it has that key; its `source` and `tools` are noted. With token ids, `loss_mask` has an entry for every one of them if
        the row says which are trained. All of it is plain JSON data.

    Raises:
        DataError: a key is missing, its value is not what it should be, or a column that nobody reads would change what is
            trained; the message begins with `source`.
    """
    try:
        prompt, images = _prompt_and_images(columns, row, source)
        loss_mask = None
        rest = row.keys() - {columns.input_key, columns.label_key, columns.tool_key, columns.metadata_key}
        rest -= {columns.image_key}
        if is_tokenised(prompt):
            prompt, loss_mask = token_ids(prompt), trained_tokens(row, prompt, columns.label_key)
            rest -= _OF_TOKENS
        elif isinstance(prompt, list):
            prompt = chat_messages(prompt)
            if rest:
                require_unread_without_effect(row, rest, prompt, columns.tool_key)
        elif not (isinstance(prompt, str) and prompt.strip()):
            raise DataError(f"{columns.input_key!r} is {shown(prompt)}, expected text or a list of messages")
        label = (
            plain(_value(row, columns.label_key, f"{columns.prefix}label-key"), "the label")
            if columns.label_key
            else None
        )
        metadata = _metadata(row, columns.metadata_key)
        given = row.get(columns.tool_key) if columns.tool_key else None
        tools = None if given is None else tool_definitions(plain(given, "the tools"))
    except DataError as error:
        raise DataError(f"{source}: {error}.") from None
    if rest and unread is not None:
        unread(source, rest)
    noted: dict[str, Any] = {"source": source}
    if tools:
        noted["tools"] = tools
        metadata = {"tools": tools, **metadata}  # functions that were written for slime look for them there
    return Sample(
        prompt=prompt, images=images, label=label, loss_mask=loss_mask, metadata={**metadata, RESERVED: noted}
    )


def named_columns(args: DataArguments) -> dict[str, str]:
    """{field: column} of the options for what rows may lack, of those that name a column other than by default."""
    named = {name: getattr(args, name) for name in ("tool_key", "metadata_key")}
    named = {name: column for name, column in named.items() if column != DataArguments.model_fields[name].default}
    named["multimodal_keys"] = _image_key(args)
    return {name: column for name, column in named.items() if column is not None}


def require_columns(named: Mapping[str, str], specs: Sequence[str]) -> None:
    """Check that some of the first rows of these files have the columns, if there are rows.

    Args:
        named: {field of the option: the column that it names}.
        specs: paths and globs of the files.

    Raises:
        DataError: none has one of them; names option, column, and the columns that there are.
    """
    missing, seen = dict(named), dict[str, None]()
    for row in first_rows(specs) if missing else ():
        seen |= dict.fromkeys(row)
        missing = {name: column for name, column in missing.items() if column not in seen}
        if not missing:
            return
    if seen:
        raise DataError(
            "\n".join(
                f"--{name.replace('_', '-')} names the column {column!r}, which none of the first {LOOKED_AT:,} rows of {', '.join(specs)} has; they "
                f"have {', '.join(map(repr, seen))}.{did_you_mean(column, seen)} Name one of these, or leave the option out. Where "
                "later rows alone have it, give it to the first row too, with null."
                for name, column in missing.items()
            )
        )


def require_unread_without_effect(
    row: dict[str, Any], rest: set[str], messages: list[dict[str, Any]], tool_key: str | None
) -> None:
    """Check that the columns of a conversation that nobody reads would not change what is trained: flags of a whole row,
    tools, a system message, variables of the template, images.

    Args:
        rest: the columns that nobody reads.

    Raises:
        DataError: one would; without file and row.
    """
    for key in sorted(rest):
        value = row[key]
        if key in FLAGS and value not in (None, 1):
            raise DataError(
                f"the row has {key!r} {shown(value)}, which nothing reads: messages are kept from being trained one by one, "
                'with "step_loss_mask": 0'
            )
        if key in ("tools", "functions") and tool_key is not None and from_json(value, f"{key!r}"):
            raise DataError(f"the row has {key!r}, which nothing reads; name the column of tools with --tool-key")
        if key == "system" and value and not _says_the_same(value, messages):
            raise DataError(
                "the row has 'system', which nothing reads; make it the first of the messages, with that role"
            )
        if key in ("image", "images") and value:
            raise DataError(
                f"the row has {key!r}, which nothing reads; name the column of images with --multimodal-keys "
                f'\'{{"image": "{key}"}}\', or take it out'
            )
        if key in ("chat_template_kwargs", *OTHER_MEDIA) and value:
            raise DataError(f"the row has {key!r}, which nothing reads; take it out, or the row")


def _image_key(args: DataArguments) -> str | None:
    return (args.multimodal_keys or {}).get("image")


def _prompt_and_images(columns: Columns, row: dict[str, Any], source: str) -> tuple[Any, list[bytes]]:
    """Return the prompt of a row as plain data, and the encoded images that its messages show."""
    prompt, column = _value(row, columns.input_key, f"{columns.prefix}input-key"), None
    if columns.image_key is not None:
        given = row.get(columns.image_key)
        column = [] if given is None else given if isinstance(given, list) else [given]
    images: list[bytes] = []
    if isinstance(prompt, str) and column is not None and (column or PLACEHOLDER in prompt):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and not is_tokenised(prompt):
        folder = Path(source.rpartition(":")[0]).parent
        prompt, images = take_images(prompt, column, partial(encoded, folder=folder, rules=columns.images))
    elif column:
        raise DataError(
            f"the row has {len(column)} images in {columns.image_key!r}, but {columns.input_key!r} is neither text nor a list of "
            "messages, in which each of them would have its place"
        )
    return plain(prompt, repr(columns.input_key)), images


def _says_the_same(system: Any, messages: list[dict[str, Any]]) -> bool:
    return bool(messages[0]["role"] == "system" and messages[0]["content"] == system)


def _value(row: dict[str, Any], key: str, option: str) -> Any:
    if key not in row:
        keys = [str(known) for known in row]
        raise DataError(
            f"the row has no key {key!r}; it has {', '.join(map(repr, keys)) or 'no key at all'}."
            f"{did_you_mean(key, keys)} Choose one with {option}"
        )
    return row[key]


def _metadata(row: dict[str, Any], key: str | None) -> dict[str, Any]:
    """Return the row's own metadata, which may also be given as JSON text."""
    if key is None or row.get(key) is None:
        return {}
    value = from_json(plain(row[key], f"{key!r}"), f"{key!r}")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{key!r} is {shown(value)}, expected an object or JSON text of one")
    if RESERVED in value:
        raise DataError(f"{key!r} has the key {RESERVED!r}, which is reserved for what slime notes; rename it")
    return value
