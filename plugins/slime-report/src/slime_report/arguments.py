"""The options of what a run records for its report."""

from __future__ import annotations

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option


class RecordArguments(ArgumentGroup):
    """What a run records for its report"""

    record_samples: int = option(
        6,
        "How many samples of a rollout are kept for `slime report`, in the folder record of the run directory: the best, the worst, the "
        "one on which trainer and engine differ most, others at random. 0 keeps none.",
        ge=0,
        affects_result=False,
    )
    record_limit: int = option(
        8 * 2**20,
        "How many bytes of samples the folder record may hold for each training rank; a quarter of it holds the rewards of groups. When "
        "it is full, every second rollout in it is dropped, and from then on half as many are recorded.",
        ge=2**16,
        when="record_samples",
        affects_result=False,
    )


class RecordedRunArguments(RunArguments, RecordArguments):
    """The run's options with those of this package: a class for type checkers, of which nobody makes an instance."""
