"""What goes wrong in the engine and is not about one option."""

from __future__ import annotations

from slime_core.errors import SlimeError


class EngineError(SlimeError):
    """The model cannot be served, or the engine is used before it has weights or after it was closed."""
