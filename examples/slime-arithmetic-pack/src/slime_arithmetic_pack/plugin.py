"""What this distribution gives to slime. Named in `pyproject.toml` under the entry-point group `slime`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_arithmetic_pack.arguments import FilterArguments, RewardArguments

    return [RewardArguments, FilterArguments]


@hookimpl
def slime_rewards() -> dict[str, Lazy]:
    return {
        "arithmetic": Lazy(
            "slime_arithmetic_pack.reward:arithmetic",
            "the number in the line 'Answer: …'",
            reads_options=("arithmetic_format_credit",),
        )
    }


@hookimpl
def slime_dynamic_filters() -> dict[str, Lazy]:
    return {
        "arithmetic_middling": Lazy(
            "slime_arithmetic_pack.filters:middling",
            "keeps groups that are neither too easy nor too hard",
            reads_options=("FilterArguments",),
        )
    }


@hookimpl
def slime_sample_filters() -> dict[str, Lazy]:
    return {
        "arithmetic_cut_off": Lazy(
            "slime_arithmetic_pack.filters:leave_out_cut_off",
            "does not train responses that were cut off",
            reads_options=(),
        )
    }
