"""The dynamic sampling filter of this package, and how the answer of any such filter is read. Pure functions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slime_core.sample import Sample, reward_of

if TYPE_CHECKING:
    from slime_core.arguments.groups.training import TrainArguments


@dataclass(frozen=True)
class Verdict:
    """Whether a group is trained.

    Attributes:
        keep: whether it passes.
        reason: why it does not.
        keep_when_insufficient: a group that does not pass is kept all the same where more prompts would have to be taken for
            it (slime's name). The rollout `fully_async`, which takes more prompts all the time, does not keep it, and says so.
    """

    keep: bool
    reason: str = "filtered"
    keep_when_insufficient: bool = False


LEAST_STD = 1e-6
"""Rewards whose standard deviation is not larger are taken for equal; slime's limit."""


def check_reward_nonzero_std(args: TrainArguments, samples: list[Sample], **kwargs: Any) -> tuple[bool, str]:
    """Keep groups whose rewards differ. Where all are equal, a group-normalised advantage is 0 (DAPO, arXiv 2503.14476).

    Rewards differ where their standard deviation (n - 1 in its denominator) is above 1e-6, as in slime: 0.3 and 0.1 + 0.2 are equal.

    Args:
        args: `reward_key` says which number of a reward that is a dict is compared.

    Returns:
        Whether the rewards differ, and as the reason for dropping the group the reward that all samples have, such as
        "zero_std_1.0".
    """
    rewards = [reward_of(sample, args.reward_key) for sample in samples]
    # `stdev` computes with fractions: equal rewards have exactly 0, huge ones do not overflow
    differ = len(rewards) > 1 and statistics.stdev(rewards) > LEAST_STD
    return differ, f"zero_std_{rewards[0]:.1f}"


def check_reward_nonzero_std_with_fallback(args: TrainArguments, samples: list[Sample], **kwargs: Any) -> Verdict:
    """Prefer groups whose rewards differ, but keep any other where more prompts would have to be taken for it."""
    return Verdict(*check_reward_nonzero_std(args, samples, **kwargs), keep_when_insufficient=True)


def read_verdict(answer: object) -> Verdict:
    """Return what a dynamic filter answered as a `Verdict`.

    Args:
        answer: a truth value of any library, a pair of such a value and a reason, or an object with the attribute `keep`
            and, optionally, the others of a `Verdict`.
    """
    scarce = False
    if hasattr(answer, "keep"):
        keep, reason = answer.keep, getattr(answer, "reason", None)
        scarce = bool(getattr(answer, "keep_when_insufficient", False))
    else:
        keep, reason = answer if isinstance(answer, tuple) else (answer, None)
    return Verdict(bool(keep), str(reason) if reason else "filtered", scarce)
