"""The dynamic sampling filter of this package, and how the answer of any such filter is read. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slime_core.sample import Sample, reward_of

if TYPE_CHECKING:
    from slime_core.arguments.groups.training import TrainArguments


TOLERANCE = 1e-6
"""Rewards whose difference is smaller than this part of the largest are taken for equal."""


def check_reward_nonzero_std(args: TrainArguments, samples: list[Sample], **kwargs: Any) -> tuple[bool, str]:
    """Keep groups whose rewards differ. Where all are equal, a group-normalised advantage is 0 (DAPO, arXiv 2503.14476).

    Rewards differ where they do so by more than a millionth of the largest: 0.3 and 0.1 + 0.2 are equal.

    Args:
        args: `reward_key` says which number of a reward that is a dict is compared.

    Returns:
        Whether the rewards differ, and as the reason for dropping the group the reward that all samples have, such as
        "zero_std_1.0".
    """
    rewards = [reward_of(sample, args.reward_key) for sample in samples]
    spread = max(rewards) - min(rewards)
    return spread > TOLERANCE * max(map(abs, rewards)), f"zero_std_{rewards[0]:.1f}"


def read_verdict(answer: object) -> tuple[bool, str]:
    """Return (whether the group is kept, the reason) from what a dynamic filter answered.

    Args:
        answer: a truth value of any library, a pair of such a value and a reason, or an object with the attributes `keep`
            and, optionally, `reason`.
    """
    keep, reason = answer if isinstance(answer, tuple) else (answer, None)
    if hasattr(keep, "keep"):
        keep, reason = keep.keep, getattr(keep, "reason", None)
    return bool(keep), str(reason) if reason else "filtered"
