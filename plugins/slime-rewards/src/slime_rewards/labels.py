"""What rewards compare with: the label of a sample."""

from __future__ import annotations

import math
from typing import Any

from slime_core.errors import DataError
from slime_core.sample import Sample


class MissingLabelError(DataError):
    """A row has no label, or an empty one."""


def text_labels(reward: str, sample: Sample) -> list[str]:
    """Return the label as texts, any of which is right: one for text or a number, several for a list of those.

    A number without decimal places is written without them: a column of whole numbers with gaps is often read as 33.0.

    Args:
        reward: who asks, for messages.

    Raises:
        MissingLabelError: the sample has no label, or an empty one.
        DataError: the label holds anything else, such as an object.
    """
    label = sample.label
    texts = [_text(reward, sample, one) for one in (label if isinstance(label, list) else [label])]
    if not texts or not all(texts):
        raise MissingLabelError(
            f"The reward {reward!r} compares with a label, but {sample.name} has none"
            f"{f' ({label!r})' if label not in (None, '') else ''}; name its column with --label-key."
        )
    return texts


def _text(reward: str, sample: Sample, label: Any) -> str:
    """Return one label as text; "" for none."""
    if label is None:
        return ""
    if isinstance(label, float) and math.isfinite(label):
        return str(int(label)) if label.is_integer() else repr(label)
    if isinstance(label, (str, int)):
        return str(label).strip()
    if isinstance(label, dict):
        keys = ", ".join(map(repr, label)) or "none"
        raise DataError(
            f"The reward {reward!r} compares with text, a number, or a list of those, but the label of {sample.name} is an "
            f"object with the keys {keys}; give the answer itself a column, and name it with --label-key."
        )
    raise DataError(
        f"The reward {reward!r} compares with text, a number, or a list of those, but the label of {sample.name} is "
        f"{str(label)[:200]!r}."
    )
