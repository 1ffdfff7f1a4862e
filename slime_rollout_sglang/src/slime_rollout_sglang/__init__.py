"""Reinforcement-learning rollouts for slime: asynchronous groups, dynamic sampling, partial rollouts, evaluation."""

__version__ = "0.1.0"
