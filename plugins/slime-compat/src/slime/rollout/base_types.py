"""What rollout functions of slime return. A rollout function here returns `slime_core.sample.RolloutOutput`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slime_compat.elsewhere import attributes_of
from slime_core.sample import Sample

__all__ = ["RolloutFnEvalOutput", "RolloutFnTrainOutput"]


@dataclass
class RolloutFnTrainOutput:
    """The groups to train on, and metrics; see `slime_core.sample.RolloutOutput`."""

    samples: list[list[Sample]]
    metrics: dict[str, Any] | None = None


@dataclass
class RolloutFnEvalOutput:
    """What evaluations measured, by the name of the set; see `slime_core.sample.RolloutOutput`."""

    data: dict[str, dict[str, Any]]
    metrics: dict[str, Any] | None = None


__getattr__ = attributes_of(__name__)
