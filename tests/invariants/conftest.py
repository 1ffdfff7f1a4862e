"""Fixtures of the tests of invariants: those of the distributions whose numbers they compare."""

from __future__ import annotations

from local_engine_fixtures import llama, random_model, start
from torch_cases import tiny

__all__ = ["llama", "random_model", "start", "tiny"]
