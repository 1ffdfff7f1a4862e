"""`Rollout`: a rollout as the driver has it, which never holds the samples of one. On a cluster they go from the rollout worker into Ray's object
store, and from there to the training ranks, which share them on each machine. Called by `slime_core.run.run`."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.rollout.result import RolloutFacts, RolloutResult
from slime_core.rollout.worker import RolloutWorker
from slime_core.runtime.handles import Handle
from slime_core.sample import Group, RolloutOutput


@dataclass(frozen=True)
class Rollout:
    """A rollout that has been made.

    Attributes:
        facts: what is logged of it.
        groups: its samples: an argument for a worker's method, of which only `fetched` makes samples here.
        data_state: the state of the data source right after it, likewise.
    """

    facts: RolloutFacts
    groups: Any
    data_state: Any

    @classmethod
    def stored(cls, data: dict[str, Any], args: RunArguments) -> Rollout:
        """The rollout that waited to be trained when a checkpoint was written."""
        result = RolloutResult.from_dict(data)
        return cls(result.facts(args), result.output.groups, result.data_state)

    def fetched(self, rollouts: Handle[RolloutWorker]) -> RolloutResult:
        """The rollout with its samples, in this process, for as long as somebody holds it."""
        groups: list[Group] = rollouts.fetch(self.groups)
        return RolloutResult(
            RolloutOutput(groups, self.facts.metrics), rollouts.fetch(self.data_state), self.facts.seconds
        )


def start_rollout(rollouts: Handle[RolloutWorker], rollout_id: int) -> Future[Rollout]:
    """Let the worker make a rollout, and return its future."""
    facts = rollouts.call(RolloutWorker.make, rollout_id)
    parts: list[Future[Any]] = [
        facts,
        rollouts.keep(RolloutWorker.take_groups, rollout_id),
        rollouts.keep(RolloutWorker.take_data_state, rollout_id),
    ]
    made: Future[Rollout] = Future()
    lock, left = threading.Lock(), len(parts)

    def done(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        errors = [CancelledError() if part.cancelled() else part.exception() for part in parts]
        error = next(filter(None, errors), None)  # the first: those after it follow from it
        if error is not None:
            made.set_exception(error)
        else:
            made.set_result(Rollout(*(part.result() for part in parts)))

    for part in parts:
        part.add_done_callback(done)
    return made
