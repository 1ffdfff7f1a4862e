"""Coroutines from plain functions."""

from slime_compat.elsewhere import attributes_of
from slime_compat.waiting import run

__all__ = ["run"]

__getattr__ = attributes_of(__name__)
