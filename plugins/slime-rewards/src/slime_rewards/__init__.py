"""Rewards, and data of procedural tasks."""
