"""A rollout as the driver has it: facts, and samples that stay with the worker until somebody takes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.rollout.result import RolloutResult
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.rollouts import Rollout, start_rollout
from slime_core.runtime.handles import LocalHandle
from slime_core.sample import RolloutOutput, Sample

ARGS: Any = SimpleNamespace(
    disable_compute_advantages_and_returns=False, reward_key=None, hf_checkpoint="", rollout_batch_size=1
)


def worker(generate: Any) -> RolloutWorker:
    """A worker of which only what it generates is another."""
    made = RolloutWorker.__new__(RolloutWorker)
    made._args, made._groups, made._data_states = ARGS, {}, {}
    made.generate = generate  # type: ignore[method-assign]  # the rest is its own
    return made


def result(rollout_id: int) -> RolloutResult:
    group = [Sample(index=n, tokens=[1, 2, 3], response_length=2, reward=float(n)) for n in range(2)]
    return RolloutResult(RolloutOutput([group], {"rounds": 1.0}), {"offset": rollout_id}, 1.5)


def handle(generate: Any) -> Any:
    made = LocalHandle(worker(generate), "rollout")
    made.worker.close = lambda: None  # type: ignore[method-assign]  # it has opened nothing
    return made


def test_a_rollout_is_told_by_its_facts_and_taken_once() -> None:
    rollouts = handle(result)
    rollout = start_rollout(rollouts, 3).result(timeout=10)
    assert (rollout.facts.metrics, rollout.facts.own["raw_reward"]) == ({"rounds": 1.0}, 0.5)
    assert (rollout.facts.num_tokens, rollout.facts.seconds) == (6, 1.5)
    assert rollout.fetched(rollouts) == result(3)
    assert not rollouts.worker._groups
    assert not rollouts.worker._data_states
    assert Rollout.stored(rollout.fetched(rollouts).to_dict(), ARGS) == rollout
    rollouts.close()


def test_what_goes_wrong_in_a_rollout_is_what_its_future_raises() -> None:
    def fails(rollout_id: int) -> RolloutResult:
        raise ValueError("no engine")

    rollouts = handle(fails)
    with pytest.raises(ValueError, match="no engine"):
        start_rollout(rollouts, 0).result(timeout=10)
    rollouts.close()
