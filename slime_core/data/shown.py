"""`shown`: how messages about rows show a value. Pure."""

from __future__ import annotations

import json
from typing import Any


def shown(value: Any) -> str:
    """Return a value as JSON, cut off where it is long."""
    if value is None:
        return "null"
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # a number of too many digits, or too deep
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
