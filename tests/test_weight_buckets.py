"""Weights reach the engine in buckets: whole and in order, no more than two buckets in memory, and neither side waits for the other
when one of them fails."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from slime_core.plugins import Plugins
from slime_core.rollout.weight_intake import UpdateCutShort
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.weight_sync import WeightSync
from slime_core.runtime.handles import LocalHandle
from slime_core.tensors.weight_buckets import in_buckets
from slime_core.training.served_weights import ServedWeights
from slime_core.training.worker import TrainWorker

SIZES = [3, 3, 3, 1, 8, 2, 2, 2, 5]
BUCKETS = [["0", "1", "2"], ["3", "4"], ["5", "6", "7"], ["8"]]
LIMIT = 9 * 4


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(LIMIT, BUCKETS), (1, [[str(n)] for n in range(9)]), (2**30, [[str(n) for n in range(9)]])],
)
def test_buckets_hold_as_much_as_they_may_and_a_larger_weight_is_alone(limit: int, expected: list[list[str]]) -> None:
    weights = [(str(n), torch.zeros(size)) for n, size in enumerate(SIZES)]
    assert [[name for name, _ in bucket] for bucket in in_buckets(weights, limit)] == expected
    assert list(in_buckets([], limit)) == []


def test_scales_travel_with_their_weight() -> None:
    sizes = {
        "a.weight": 8,
        "a.weight_scale_inv": 3,
        "b.weight": 4,
        "b.weight_scale": 1,
        "b.weight_zero": 1,
        "c.weight": 9,
    }
    buckets = in_buckets([(name, torch.zeros(size)) for name, size in sizes.items()], LIMIT)
    assert [[name for name, _ in bucket] for bucket in buckets] == [list(sizes)[:2], list(sizes)[2:5], list(sizes)[5:]]


class Backend:
    """Gathers its weights, and knows which of them somebody holds.

    Attributes:
        most: elements of all weights that were held at one time.
        fails_at: the number of a weight that it cannot gather.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.most, self.version = fails_at, 0, 0
        self._living: dict[int, int] = {}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for number, size in enumerate(SIZES):
            if number == self.fails_at:
                raise RuntimeError("this weight cannot be gathered")
            tensor = torch.full((size,), float(100 * self.version + number))
            self._living[number] = size
            weakref.finalize(tensor, self._living.pop, number, None)
            self.most = max(self.most, sum(self._living.values()))
            yield str(number), tensor
            del tensor


class Engine:
    """Takes weights as `read` does.

    Attributes:
        found: {version: what it read}.
        error: of an update that failed.
    """

    def __init__(self, read: Callable[[Iterable[tuple[str, Tensor]]], Any]) -> None:
        self._read = read
        self.found: dict[int, Any] = {}
        self.error: BaseException | None = None

    def update_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        try:
            self.found[version] = self._read(weights)
        except BaseException as error:
            self.error = error
            raise

    def close(self) -> None: ...


def numbers(weights: Iterable[tuple[str, Tensor]]) -> dict[str, list[float]]:
    """Reads each weight, and keeps none."""
    return {name: tensor.tolist() for name, tensor in weights}


def expected(version: int) -> dict[str, list[float]]:
    return {str(n): [float(100 * version + n)] * size for n, size in enumerate(SIZES)}


@pytest.fixture
def between() -> Iterator[Callable[..., WeightSync]]:
    """Gives what hands the weights of a backend to an engine, each on a thread of its own."""
    handles: list[LocalHandle[Any]] = []

    def make(backend: Backend, engine: Any, limit: int = LIMIT) -> WeightSync:
        args: Any = SimpleNamespace(update_weight_buffer_size=limit)
        trainer, rollouts = TrainWorker.__new__(TrainWorker), RolloutWorker.__new__(RolloutWorker)
        rollouts._at_end = ExitStack()
        vars(trainer).update(_models=[], _served=ServedWeights(backend, None, limit, rank=0, ranks=1))
        vars(rollouts).update(_engine=engine, _intake=None, _closes_data=False, _background=Engine(numbers))
        handles.extend([LocalHandle(trainer, "trainer"), LocalHandle(rollouts, "rollouts")])
        return WeightSync(args, Plugins([]), handles[-1], handles[-2], takes_turns=False)

    yield make
    for handle in handles:
        handle.close()


@pytest.mark.parametrize("limit", [1, LIMIT, 2**30])
@pytest.mark.parametrize("read", [numbers, lambda weights: numbers(list(weights))], ids=["one by one", "all at once"])
def test_every_update_brings_all_weights(between: Any, limit: int, read: Any) -> None:
    backend, engine = Backend(), Engine(read)
    sync = between(backend, engine, limit)
    for version in (1, 2, 2, 3):
        backend.version = version
        sync.update(version)
        assert engine.found[version] == expected(version)
    assert len(engine.found) == 3


def test_there_are_no_more_than_two_buckets_and_the_next_weight(between: Any) -> None:
    backend = Backend()
    between(backend, Engine(numbers)).update(1)
    assert backend.most <= 9 + 9 + 8  # of the larger ones
    collecting = Backend()
    between(collecting, Engine(lambda weights: numbers(list(weights)))).update(1)
    assert collecting.most == sum(SIZES), "the measure sees what somebody keeps"
    assert not backend._living


def test_an_engine_that_reads_nothing_and_no_engine_at_all_end_an_update(between: Any) -> None:
    engine = Engine(lambda weights: None)
    sync = between(Backend(), engine)
    for version in (1, 2):
        sync.update(version)
    assert list(engine.found) == [1, 2]
    between(Backend(), None).update(1)


@pytest.mark.parametrize("fails_at", [0, 3, 7, 8])
def test_a_trainer_that_fails_half_way_lets_the_engines_update_fail(between: Any, fails_at: int) -> None:
    engine = Engine(numbers)
    sync = between(Backend(fails_at), engine)
    with pytest.raises(RuntimeError, match="this weight cannot be gathered"):
        sync.update(1)
    assert not engine.found
    if fails_at > 3:  # a first bucket was there
        assert isinstance(engine.error, UpdateCutShort)
        assert "weights of version 1 ended after" in str(engine.error).lower()


@pytest.mark.parametrize("fails_after", [0, 1, 5, 9])
def test_an_engine_that_fails_half_way_says_why_and_can_be_updated_again(between: Any, fails_after: int) -> None:
    broken = True

    def read(weights: Iterable[tuple[str, Tensor]]) -> Any:
        found = {}
        for number, (name, tensor) in enumerate(weights):
            if broken and number == fails_after:
                raise RuntimeError(f"it cannot read weight {name}")
            found[name] = tensor.tolist()
        if broken:
            raise RuntimeError("it cannot read weight 9")
        return found

    backend, engine = Backend(), Engine(read)
    sync = between(backend, engine)
    with pytest.raises(RuntimeError, match=f"it cannot read weight {fails_after}"):
        sync.update(1)
    broken, backend.version = False, 1
    sync.update(1)
    assert engine.found == {1: expected(1)}


def test_a_run_that_ends_in_an_update_does_not_wait_for_the_rest(between: Any) -> None:
    engine = Engine(numbers)
    sync = between(Backend(), engine)
    bucket = sync._trainer.call(TrainWorker.next_weights).result()
    assert sync._rollouts.call(RolloutWorker.take_weights, bucket, 1).result()
    sync._rollouts.worker.close()
    assert isinstance(engine.error, UpdateCutShort)
