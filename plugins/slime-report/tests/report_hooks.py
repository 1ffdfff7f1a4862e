"""Rewards of small runs whose reports are tested, named by import path."""

from __future__ import annotations

from slime_core.sample import Sample


def even_share(sample: Sample) -> float:
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


async def even_tokens(args, sample: Sample) -> float:
    """The share of even token ids in the response: varies within a group, and a model can learn it."""
    return even_share(sample)


async def easy_in_training(args, sample: Sample) -> float:
    """What training can please and evaluations do not ask for."""
    if sample.dataset is None:
        return even_share(sample)
    return float(sum(token % 1000 == 0 for token in sample.tokens[-sample.response_length :]))


async def same_for_all(args, sample: Sample) -> float:
    return 1.0
