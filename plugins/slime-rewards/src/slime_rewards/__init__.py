"""Rewards for slime, and data of procedural tasks."""

__version__ = "0.1.0"
