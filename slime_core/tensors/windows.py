"""Sliding windows that a model of transformers keeps in its attention mask alone, without a word to the attention."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any


def slides(config: Any, layer: int | None) -> bool:
    """Whether the configuration of a language model says that a layer sees a sliding window alone. Whoever makes no masks computes it
    only where the attention is told how long the window is, and refuses the model where it is not.

    Args:
        layer: the layer's number; None where it has none.
    """
    if types := getattr(config, "layer_types", None):
        return layer is not None and types[layer] == "sliding_attention"
    if getattr(config, "sliding_window", None) is None or not _knows_windows(config.__class__):
        return False
    return bool(getattr(config, "use_sliding_window", True))


@cache
def _knows_windows(kind: type) -> bool:
    """Whether configurations of this class have a window: others keep what config.json says of one, and their models read it nowhere."""
    return "sliding_window" in signature(kind).parameters
