"""Fixtures of the tests of the embedded engine."""

from __future__ import annotations

from local_engine_fixtures import llama, random_model, start

__all__ = ["llama", "random_model", "start"]
