"""`sampling_defaults`: how the makers of a model recommend to sample, as its generation_config.json says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

TEMPERATURE = 0.7
"""Where the model recommends none."""


def sampling_defaults(folder: str) -> dict[str, Any]:
    """Return `temperature`, `top_p` and `top_k` for a model in a folder."""
    try:
        given = json.loads((Path(folder) / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        given = {}
    given = given if isinstance(given, dict) else {}
    temperature: Any = given.get("temperature")
    top_p: Any = given.get("top_p")
    top_k: Any = given.get("top_k")
    return {
        "temperature": temperature if _is_number(temperature) and 0 <= temperature < math.inf else TEMPERATURE,
        "top_p": top_p if _is_number(top_p) and 0 < top_p <= 1 else 1.0,
        "top_k": top_k if isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1 else -1,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
