"""Fixtures of the tests of the torch backend."""

from __future__ import annotations

from torch_cases import tiny

__all__ = ["tiny"]
