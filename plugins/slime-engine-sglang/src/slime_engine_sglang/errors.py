"""What goes wrong between slime and its SGLang servers and is not about one option."""

from __future__ import annotations

from slime_core.errors import SlimeError


class SGLangError(SlimeError):
    """A server or the router does not start, does not answer, or answers something else than expected."""
