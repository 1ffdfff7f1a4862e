"""Losses for slime: per-token functions that every train backend can run.

plugin.py      what this distribution gives to slime
arguments.py   options of losses, advantage estimators and off-policy corrections
checks.py      what is seen of a run before it starts
policy.py      the clipped surrogate of PPO, GRPO, DAPO and others
gspo.py        the clipped surrogate of sequence ratios
cispo.py       clipped weights
value.py       what a critic minimises
sft.py         negative log-likelihood
objective.py   the terms that all policy losses share
surrogate.py   how a ratio of probabilities is clipped
divergence.py  ratios and KL divergences from log-probs
opsm.py        off-policy sequence masking
reducer.py     how the policy loss of tokens becomes one number
sequences.py   sums and means over each sample's tokens
importance.py  corrections for tokens that an engine sampled with other probabilities
overlong.py    a penalty on rewards of responses near the length limit
advantages/    advantage estimators
"""

__version__ = "0.1.0"
