"""`Background`: what a rollout function goes on doing between its calls.

A function that names the parameter `background` is given the run's `Background` in every call, evaluation included. What
it leaves there as `work` it finds again in its next call; the rollout worker asks it for the state that a checkpoint
shall hold, and closes it when the run ends, however it ends. Such a function is started with `slime train-async` and is
asked for a rollout when the one before has been trained, right after the engine was given the new weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from slime_core.contracts import DataSource
from slime_core.sample import Group, Sample

_IN_FLIGHT = "in_flight"


class Work(Protocol):
    """What goes on.

    Attributes:
        data_state: of the data source when the last rollout was returned; see `state_with`. The work alone calls the
            data source, so it alone can say.
    """

    data_state: dict[str, Any]

    def close(self) -> None:
        """The run is over: end all threads and requests. Must not raise."""


@dataclass
class Background:
    """Where a rollout function leaves its work; None before its first call."""

    work: Work | None = None

    def data_state(self, source: DataSource) -> dict[str, Any]:
        """What a checkpoint of the rollout that was returned last holds of the data source."""
        return source.state_dict() if self.work is None else self.work.data_state

    def close(self) -> None:
        """End the work, if there is any."""
        if self.work is not None:
            self.work.close()


def state_with(source: DataSource, in_flight: list[Group]) -> dict[str, Any]:
    """The state of a data source from which these groups were taken and have not been returned by a rollout function yet,
    as plain JSON data."""
    groups = [[sample.to_dict() for sample in group] for group in in_flight]
    return {**source.state_dict(), _IN_FLIGHT: groups}


def load_state(source: DataSource, state: dict[str, Any]) -> None:
    """Let a data source go on from such a state, or from one of its own: what was in flight is in its buffer."""
    own = dict(state)
    in_flight = own.pop(_IN_FLIGHT, [])
    source.load_state_dict(own)
    if in_flight:
        source.add_samples([[Sample.from_dict(sample) for sample in group] for group in in_flight])
