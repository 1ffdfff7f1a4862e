"""Advantage estimators: from the rewards of a rollout to one advantage for each response token. One file states one rule;
`groups.py` compares rewards within groups, `tokens.py` turns numbers of samples into numbers of tokens."""
