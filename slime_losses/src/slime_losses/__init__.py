"""Losses for slime: per-token functions that every train backend can run."""

__version__ = "0.1.0"
