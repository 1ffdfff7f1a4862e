"""The options of the pack. In `plugin.py` each component names those that it reads in `reads_options`, one by one or as a
whole group, so that slime can tell when an option has no effect in a run."""

from __future__ import annotations

from slime_core.contracts.options import ArgumentGroup, option


class RewardArguments(ArgumentGroup):
    """Arithmetic reward"""

    arithmetic_format_credit: float = option(
        0.1, "Reward of a wrong number that stands where it should, in the answer line.", ge=0, lt=1
    )


class FilterArguments(ArgumentGroup):
    """Arithmetic filter"""

    arithmetic_solved_from: float = option(0.2, "Smallest share of right answers in a group to train on.", ge=0, le=1)
    arithmetic_solved_to: float = option(0.8, "Largest share of right answers in a group to train on.", ge=0, le=1)
