"""How many tokens of prompt and response a checkpoint was made for."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

CONTEXT_IN_WORDS = "the model's context (max_position_embeddings in config.json)"
_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@lru_cache(maxsize=16)
def context_of(folder: str) -> int | None:
    """Return the longest sequence in tokens that a Hugging Face checkpoint was made for, as its config.json says; None where that
    says nothing, as for models without a limit, or is not there.

    Of a model that reads other things than text, too, it is that of its text model.
    """
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = [config.get("text_config"), config] if isinstance(config, dict) else []
    for part in parts:
        for name in _NAMES:
            value = part.get(name) if isinstance(part, dict) else None
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
