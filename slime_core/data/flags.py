"""Flags that keep a message from being trained, under the names that tools give them. Called wherever messages are read. Pure.

slime's own is `step_loss_mask`: 0 or 1. The others mean the same, so all become it.
"""

from __future__ import annotations

from typing import Any

from slime_core.data.shown import shown
from slime_core.errors import DataError

STEP = "step_loss_mask"
FLAGS = (STEP, "weight", "loss_weight", "loss_mask", "loss", "train")
"""The names of flags: of slime, OpenAI and ShareGPT (`weight`), axolotl and others (`train`, `loss`, …)."""

FLAG_NAMES = frozenset(FLAGS)


def step_flag(message: dict[str, Any], what: str) -> int | None:
    """Return 1 where a message is to be trained, 0 where not; None where it says nothing.

    Args:
        what: how messages call it, such as "message 3".

    Raises:
        DataError: a flag is neither 0 nor 1 (nor a boolean), or two of them disagree; without file and row.
    """
    if FLAG_NAMES.isdisjoint(message):
        return None
    said: dict[str, int] = {}
    for name in FLAGS:
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise DataError(f"{what} has {name} {shown(value)}; expected 0 (not trained) or 1")
        said[name] = int(value)
    if len(set(said.values())) > 1:
        raise DataError(f"{what} has flags that disagree: {', '.join(f'{n} {v}' for n, v in said.items())}; keep one")
    return next(iter(said.values()), None)
