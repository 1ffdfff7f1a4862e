"""Rewards that need nothing but the answer and its label."""
