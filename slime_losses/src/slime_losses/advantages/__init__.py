"""Advantage estimators: from the rewards of a rollout to one advantage for each response token. One file states one rule.

grpo.py                          rewards standardised in their group
dr_grpo.py                       rewards less their group's mean
rloo.py                          rewards less the mean of the group's others
reinforce_plus_plus.py           discounted rewards of tokens, whitened over the batch
reinforce_plus_plus_baseline.py  rewards less their group's mean, whitened over the batch
ppo.py                           generalised advantage estimation with a critic
groups.py                        compares rewards within their groups
tokens.py                        from numbers of samples to numbers of tokens, and sums along tokens
"""
