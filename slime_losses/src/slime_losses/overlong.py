"""`--custom-reward-post-process-path dapo_overlong`: responses near the length limit lose reward (DAPO's soft overlong
punishment). Training calls it on all samples of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slime_core.errors import ArgumentError, SampleError
from slime_core.sample import Sample, reward_of
from slime_core.trajectories import trajectory_numbers
from slime_losses.advantages import dr_grpo, grpo, reinforce_plus_plus_baseline, rloo
from slime_losses.arguments import AdvantageArguments, LossRunArguments, unknown_to_overlong

Normalise = Callable[[AdvantageArguments, Tensor, Tensor, Tensor], Tensor]
"""Called with the options, S rewards, the group of each (int64, 0 … G-1) and its trajectory (int64, 0 … R-1); returns S rewards."""


def _as_they_are(args: AdvantageArguments, rewards: Tensor, group_index: Tensor, trajectory_index: Tensor) -> Tensor:
    return rewards


NORMALISED_BY: dict[str, Normalise] = {
    "grpo": grpo.normalised_rewards,
    "gspo": grpo.normalised_rewards,
    "cispo": grpo.normalised_rewards,
    "dr_grpo": dr_grpo.normalised_rewards,
    "rloo": rloo.normalised_rewards,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline.normalised_rewards,
    "reinforce_plus_plus": _as_they_are,
    "ppo": _as_they_are,
}
"""What an estimator makes of rewards before anything else. A post-process takes the place of that, so it has to do it."""


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """Return a number between 0 and -1 (arXiv 2503.14476, eq. 13): 0 up to `limit` - `buffer` tokens, then falling evenly,
    -1 from `limit` on."""
    return -min(1.0, max(0, length - (limit - buffer)) / buffer)


def dapo_overlong(args: LossRunArguments, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """Add `--overlong-penalty-factor` times the penalty to each reward; then normalise in the group as the run's advantage
    estimator would have done.

    Returns:
        the rewards as they were given, and those to train with.

    Raises:
        ArgumentError: the advantage estimator is none of `NORMALISED_BY`.
        SampleError: a sample has no group, no reward, or not the reward that `--reward-key` names.
    """
    if problem := unknown_to_overlong(args):
        raise ArgumentError(problem)
    raw = [reward_of(sample, args.reward_key) for sample in samples]
    limit, buffer = args.rollout_max_response_len, args.overlong_buffer_len
    shaped = [
        reward + args.overlong_penalty_factor * overlong_penalty(sample.response_length, limit, buffer)
        for reward, sample in zip(raw, samples, strict=True)
    ]
    normalise = NORMALISED_BY[args.custom_advantage_function_path or args.advantage_estimator]
    trajectories = torch.tensor(trajectory_numbers(samples), dtype=torch.int64)
    rewards = torch.tensor(shaped, dtype=torch.float64)
    return raw, normalise(args, rewards, _group_numbers(samples), trajectories).tolist()


def _group_numbers(samples: Sequence[Sample]) -> Tensor:
    """Number the groups of a rollout 0 … G-1 in the order in which they occur, and return the number of each sample's."""
    numbers: dict[int, int] = {}
    found: list[int] = []
    for sample in samples:
        if sample.group_index is None:
            raise SampleError(
                f"dapo_overlong compares the rewards of a group, but {sample.name} has no group_index. Set it, the same "
                "number for all samples of a prompt and another one for every prompt."
            )
        found.append(numbers.setdefault(sample.group_index, len(numbers)))
    return torch.tensor(found, dtype=torch.int64)
