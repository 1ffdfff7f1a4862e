"""What rewards compare with: the label of a sample."""

from __future__ import annotations

from slime_core.errors import DataError
from slime_core.sample import Sample


def text_label(reward: str, sample: Sample) -> str:
    """Return the label as text.

    Raises:
        DataError: the sample has none, or an empty one. `reward` names who asked.
    """
    text = "" if sample.label is None else str(sample.label).strip()
    if not text:
        raise DataError(
            f"The reward {reward!r} compares with a label, but {sample.name} has none; name its column with --label-key."
        )
    return text
