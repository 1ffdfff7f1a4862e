"""Which groups and which samples of them the project trains on."""

from __future__ import annotations

from typing import Any

from slime_arithmetic_pack.arguments import FilterArguments
from slime_arithmetic_pack.reward import SOLVED
from slime_core.arguments import RunArguments
from slime_core.sample import Group, Sample, Status


def middling(args: FilterArguments, samples: list[Sample], **kwargs: Any) -> tuple[bool, str]:
    """Keep a group when the share of right answers lies between `args.arithmetic_solved_from` and `…_to`, both
    included. The reason says on which side it lies otherwise."""
    share = sum(sample.reward == SOLVED for sample in samples) / len(samples)
    if share < args.arithmetic_solved_from:
        return False, "too_hard"
    if share > args.arithmetic_solved_to:
        return False, "too_easy"
    return True, "middling"


def leave_out_cut_off(args: RunArguments, groups: list[Group]) -> None:
    """Set `remove_sample` on every response that ran into the length limit. Its reward still counts in its group."""
    for group in groups:
        for sample in group:
            if sample.status is Status.TRUNCATED:
                sample.remove_sample = True
