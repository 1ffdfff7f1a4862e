"""Rows that are tokenised already: their token ids, and which of them are trained. Pure; called for every row whose
`--input-key` column is a list of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from slime_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""What `labels` holds, as in transformers and torch, where a token is not trained."""


def is_tokenised(value: Any) -> bool:
    """Whether a column's value is token ids rather than text or messages."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], (int, float))


def token_ids(values: list[Any]) -> list[int]:
    """Return the token ids of a column: whole numbers from 0 on. `require_known` compares them with a vocabulary.

    Raises:
        DataError: what is wrong with which token, counted from 1; without file and row.
    """
    for number, value in enumerate(values, 1):
        if type(value) is not int or value < 0:
            raise DataError(f"token {number} is {value!r}, expected a whole number from 0 on")
    return values


def trained_tokens(row: dict[str, Any], ids: Sequence[int], label_key: str | None = None) -> list[int] | None:
    """Return 1 for every token that the row's `loss_mask` or `labels` trains, 0 for the others; None if it has neither.

    Args:
        label_key: the column that rewards compare with; under the name of "labels" it is no mask.

    Raises:
        DataError: one of them does not fit the tokens, or the row has both, or is padded; without file and row.
    """
    mask, labels = row.get("loss_mask"), row.get("labels") if label_key != "labels" else None
    padding = row.get("attention_mask")
    if isinstance(padding, list) and 0 in padding:
        raise DataError("'attention_mask' holds a 0, so the row is padded; save it without padding")
    if mask is not None and labels is not None:
        raise DataError("the row has both 'loss_mask' and 'labels'; keep the one that says what is trained")
    if labels is not None:
        _require_length("labels", labels, ids)
        for number, (label, token) in enumerate(zip(labels, ids, strict=True), 1):
            if label not in (token, IGNORED):
                raise DataError(
                    f"label {number} is {label!r}, expected the token itself, {token}, or {IGNORED}: labels stand in "
                    "the places of their tokens, not shifted"
                )
        return [int(label != IGNORED) for label in labels]
    if mask is not None:
        _require_length("loss_mask", mask, ids)
        if wrong := [value for value in mask if type(value) not in (int, bool) or value not in (0, 1)]:
            raise DataError(f"'loss_mask' holds {wrong[0]!r}, expected 0 and 1 only")
        return [int(value) for value in mask]
    return None


def require_known(ids: Sequence[int], vocabulary: int) -> None:
    """Raise `DataError`, without file and row, if an id is not below `vocabulary`."""
    highest = max(ids)
    if highest >= vocabulary:
        raise DataError(
            f"token {list(ids).index(highest) + 1} is {highest}, but the tokenizer of --hf-checkpoint knows ids below "
            f"{vocabulary} only; tokenise the rows with that tokenizer"
        )


@lru_cache(maxsize=4)
def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return 1 + the highest id that a tokenizer knows; its length counts no gaps. Found once per tokenizer."""
    highest: int = max(tokenizer.get_vocab().values())
    return 1 + highest


def _require_length(name: str, values: Any, ids: Sequence[int]) -> None:
    if not isinstance(values, list) or len(values) != len(ids):
        found = f"{len(values)} entries" if isinstance(values, list) else repr(values)
        raise DataError(f"{name!r} is {found}, expected a list of {len(ids)}, one per token")
