"""Reinforcement-learning rollouts for slime: asynchronous groups, dynamic sampling, partial rollouts, evaluation.

plugin.py       the hooks by which slime finds all this
arguments.py    the options
checks.py       what is seen of a run before it starts
rollout.py      the rollout function `rl`
fully_async.py  the rollout function `fully_async`
staleness.py    which of its groups may be started, and which must be returned
evaluation.py   answers to the evaluation sets
pipeline.py     the stages that prompts go through, with the components of a run
prompts.py      from a prompt to token ids
parameters.py   sampling parameters, length limits, seeds
sampling.py     dynamic sampling: groups are started, judged and stopped
groups.py       one group is generated and scored
generators.py   the generate function under its failure policy
generate.py     the generate function of a single turn
sample_hooks.py what sees finished samples before they are scored
requests.py     the requests to the engine
filters.py      a dynamic filter, and how the answer of any is read
partial.py      groups that were stopped go back to the data source
metrics.py      the numbers of a rollout
asked_metrics.py those that options ask for: pass rates, turns, categories of rewards
"""

__version__ = "0.1.0"
