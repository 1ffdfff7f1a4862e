"""Dynamic sampling filters, and how their answers are read. Pure."""

from __future__ import annotations

from typing import Any

from slime_core.sample import Sample, reward_of


def check_reward_nonzero_std(args: Any, samples: list[Sample], **kwargs: Any) -> tuple[bool, str]:
    """Keep groups whose rewards differ: where all are equal, a group-normalised advantage is 0 (DAPO, arXiv 2503.14476).

    Args:
        args: reads `reward_key`.

    Returns:
        Whether they differ, and as a reason what all of them are, such as "zero_std_1.0".
    """
    rewards = [reward_of(sample, args.reward_key) for sample in samples]
    return len(set(rewards)) > 1, f"zero_std_{rewards[0]:.1f}"


def verdict(answer: Any) -> tuple[bool, str]:
    """(keep, reason) of what a dynamic filter answered: a truth value of any library, a pair of it and a reason, or an
    object with `keep` and `reason`."""
    keep, reason = answer if isinstance(answer, tuple) else (answer, None)
    if hasattr(keep, "keep"):
        keep, reason = keep.keep, getattr(keep, "reason", None)
    return bool(keep), str(reason) if reason else "filtered"
