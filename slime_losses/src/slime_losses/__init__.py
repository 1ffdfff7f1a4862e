"""Losses for slime: per-token functions that every train backend can run."""
