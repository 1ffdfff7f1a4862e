"""Dynamic filters as `slime.rollout.filter_hub` has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slime_compat.grading import plugins
from slime_core.sample import Sample


@dataclass
class DynamicFilterOutput:
    """What a dynamic filter answers.

    Attributes:
        keep: whether the group is trained.
        reason: why not; reasons are counted in the metrics.
        keep_when_insufficient: keep the group all the same where too few others are left to fill the rollout.
    """

    keep: Any
    reason: str | None = None
    keep_when_insufficient: bool = False


class MetricGatherer:
    """Counts why groups were dropped. The rollout counts for itself; this is for functions that do so, too."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()

    def on_dynamic_filter_drop(self, reason: str | None) -> None:
        """Count a group that was dropped."""
        if reason:
            self._reasons[reason] += 1

    def collect(self) -> dict[str, int]:
        """The counts, as metrics."""
        return {f"rollout/dynamic_filter/drop_{reason}": count for reason, count in self._reasons.items()}


def call_dynamic_filter(function: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> DynamicFilterOutput:
    """Call a dynamic filter, if there is one, and return its answer as a `DynamicFilterOutput`."""
    output = DynamicFilterOutput(True) if function is None else function(*args, **kwargs)
    return output if isinstance(output, DynamicFilterOutput) else DynamicFilterOutput(output)


def check_reward_nonzero_std(args: Any, samples: list[Sample], **kwargs: Any) -> DynamicFilterOutput:
    """Keep groups whose rewards differ, as the filter of this name in the run's plugins says."""
    answer = plugins().select("dynamic_filter", "check_reward_nonzero_std")(args, samples)
    keep, reason = answer if isinstance(answer, tuple) else (answer, None)
    return DynamicFilterOutput(bool(keep), None if keep else reason)


def check_reward_nonzero_std_with_fallback(args: Any, samples: list[Sample], **kwargs: Any) -> DynamicFilterOutput:
    """The same, but keep a group whose rewards are equal where dropping it would leave too few to fill the rollout."""
    output = check_reward_nonzero_std(args, samples, **kwargs)
    output.keep_when_insufficient = True
    return output
