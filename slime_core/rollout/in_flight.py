"""The state of a data source from which groups were taken that no rollout function has returned yet. Called by rollout
functions that work in the background, and when a checkpoint is loaded."""

from __future__ import annotations

from typing import Any

from slime_core.contracts.data import DataSource, state_of
from slime_core.data.sample_columns import snapshot
from slime_core.errors import CheckpointError
from slime_core.sample import Group, stored_sample

_IN_FLIGHT = "in_flight"


def state_with(source: DataSource, in_flight: list[Group]) -> dict[str, Any]:
    """The state of the data source together with groups that were taken from it: plain JSON data, in which samples stand."""
    return {**state_of(source), _IN_FLIGHT: [list(map(snapshot, group)) for group in in_flight]}


def load_state(source: DataSource, state: dict[str, Any]) -> None:
    """Restore a data source from what `state_with` or its own `state_dict` returned. Groups that were in flight are put into
    its buffer.

    Raises:
        CheckpointError: it is none that this source can go on from.
    """
    own = dict(state)
    in_flight = own.pop(_IN_FLIGHT, [])
    try:
        source.load_state_dict(own)
        if in_flight:
            source.add_samples([list(map(stored_sample, group)) for group in in_flight])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"The state of the data source in the checkpoint cannot be gone on from ({type(error).__name__}: {error}). Go on from an "
            "earlier checkpoint, or with the --data-source-path that it was saved with."
        ) from error
