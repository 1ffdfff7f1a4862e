"""`SGLangError`: what goes wrong between slime and its SGLang servers and does not come from one option."""

from __future__ import annotations

from slime_core.errors import SlimeError


class SGLangError(SlimeError):
    """A server or the router does not start, does not answer, or answers something else than expected."""


class Unreachable(SGLangError):
    """A server does not answer."""


class UnsupportedCall(SGLangError):
    """A server does not know a call, because its version of SGLang is too old or too new."""
