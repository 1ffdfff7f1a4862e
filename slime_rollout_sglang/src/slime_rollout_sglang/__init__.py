"""Reinforcement-learning rollouts for slime: asynchronous groups, dynamic sampling, partial rollouts, evaluation."""
