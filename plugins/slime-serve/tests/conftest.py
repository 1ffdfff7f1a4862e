"""Fixtures of the tests of `slime chat` and `slime serve`."""

from __future__ import annotations

from serve_fixtures import served

__all__ = ["served"]
