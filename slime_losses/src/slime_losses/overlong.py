"""`--custom-reward-post-process-path dapo_overlong`: responses near the length limit lose reward (DAPO's soft overlong
punishment). Called by training on all samples of a rollout."""

from __future__ import annotations

from typing import Any

import torch

from slime_core.sample import Sample, reward_of
from slime_losses.advantages.groups import normalised


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """Between 0 and -1 (arXiv 2503.14476, eq. 13): 0 up to `limit` - `buffer` tokens, then falling evenly, -1 from
    `limit` on."""
    return -min(1.0, max(0, length - (limit - buffer)) / buffer)


def dapo_overlong(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """Adds `--overlong-penalty-factor` times the penalty to each reward; then normalises in the group as
    `--advantage-estimator` would have done.

    Returns:
        the rewards as they were given, and those to train with.

    Raises:
        SampleError: a sample has no reward, or not the one that `--reward-key` names.
    """
    raw = [reward_of(sample, args.reward_key) for sample in samples]
    limit, buffer = args.rollout_max_response_len, args.overlong_buffer_len
    shaped = [
        reward + args.overlong_penalty_factor * overlong_penalty(sample.response_length, limit, buffer)
        for reward, sample in zip(raw, samples, strict=True)
    ]
    numbers: dict[int | None, int] = {}
    groups = [numbers.setdefault(sample.group_index, len(numbers)) for sample in samples]
    rewards = torch.tensor(shaped, dtype=torch.float64)
    return raw, normalised(args.advantage_estimator, args, rewards, torch.tensor(groups)).tolist()
