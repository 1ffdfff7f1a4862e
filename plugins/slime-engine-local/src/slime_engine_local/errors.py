"""What goes wrong in the engine and does not come from one option."""

from __future__ import annotations

from slime_core.errors import SlimeError


class EngineError(SlimeError):
    """The model cannot be served, its weights are missing or unusable, or the engine is used after it was closed."""


class HalfReplaced(EngineError):
    """Some of a model's weights are new ones and others are not."""
