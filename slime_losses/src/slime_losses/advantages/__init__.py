"""Advantage estimators: from the rewards of a rollout to one advantage per response token."""
