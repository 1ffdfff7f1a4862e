"""A backend that repeats experts is told to remember them for the very micro-batches of every later step, and to forget them
when the rollout is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from stub_backend import StubBackend

from slime_core.arguments.groups import GROUPS
from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.loss import LossFunction, needs_gradient_at_zero_advantage, reads
from slime_core.contracts.train_backend import Role, TrainBatch
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_core.training.components import TrainComponents
from slime_core.training.profiling import Profiler
from slime_core.training.worker import TrainWorker


class Backend(StubBackend):
    """Computes nothing, and notes what it is asked for as [what, micro-batches of tokens].

    Attributes:
        calls: of all that were made.
    """

    calls: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, args: Any) -> None:
        self.replays_routing = args.replays

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None: ...

    def log_probs(self, batch: TrainBatch) -> list[list[float]]:
        return self._note("log_probs", batch)

    def remember_routing(self, batch: TrainBatch) -> list[list[float]]:
        return self._note("remember", batch)

    def forget_routing(self) -> None:
        self.calls.append(("forget", None))

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        self._note("step", batch)
        return {}

    def _note(self, name: str, batch: TrainBatch) -> list[list[float]]:
        self.calls.append((name, [[batch.samples[i].index for i in own] for own in batch.micro_batches]))
        return [[0.0] * sample.response_length for sample in batch.samples]


def estimator(args: Any, inputs: Any) -> AdvantageOutputs:
    """Samples 1, 4 and 5 have no gradient."""
    has = torch.tensor([number not in (1, 4, 5) for number in inputs.sample_index.tolist()])
    return AdvantageOutputs(has.float())


@reads(lambda args: {"old_log_probs"})
def estimator_that_reads(args: Any, inputs: Any) -> AdvantageOutputs:
    """The same, and it wants log-probs before it says which samples have no gradient."""
    return estimator(args, inputs)


@needs_gradient_at_zero_advantage(lambda args: False)
@reads(lambda args: {"old_log_probs"})
def loss(args: Any, inputs: Any) -> Any:
    raise NotImplementedError


@needs_gradient_at_zero_advantage(lambda args: False)
def loss_without_log_probs(args: Any, inputs: Any) -> Any:
    raise NotImplementedError


Trained = Callable[..., list[tuple[str, Any]]]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Takes a rollout of eight samples through training, and returns what the backend was asked for."""

    def run(estimator: Any = estimator, loss: Any = loss, **options: Any) -> list[tuple[str, Any]]:
        defaults = {
            name: None if field.is_required() else field.get_default(call_default_factory=True)
            for group in GROUPS
            for name, field in group.model_fields.items()
        }
        args: Any = SimpleNamespace(
            **{**defaults, "hf_checkpoint": str(tmp_path), "replays": True, "num_steps_per_rollout": 2, **options}
        )
        plugins = Plugins([])
        components = TrainComponents(
            train_backend=plugins.select("train_backend", f"{__name__}.Backend"),
            loss=plugins.select("loss", f"{__name__}.{loss.__name__}"),
            advantage=plugins.select("advantage", f"{__name__}.{estimator.__name__}"),
        )
        worker = TrainWorker(args, plugins, components, Profiler(args, tmp_path), total_rollouts=1)
        worker.setup()
        samples = [
            Sample(index=n, group_index=n // 2, tokens=[1, 2], response_length=1, reward=1.0, rollout_log_probs=[0.0])
            for n in range(8)
        ]
        Backend.calls.clear()
        worker.train(0, [samples[n : n + 2] for n in range(0, 8, 2)])
        return list(Backend.calls)

    return run


FIRST, SECOND = [[0], [2], [3]], [[6], [7]]
STEPS = [("step", FIRST), ("step", SECOND), ("forget", None)]
REMEMBERED = [("remember", FIRST), ("remember", SECOND)]


def test_experts_are_remembered_where_old_log_probs_are_computed(trained: Trained) -> None:
    assert trained() == [*REMEMBERED, *STEPS]


@pytest.mark.parametrize(
    "given",
    [{"loss": loss_without_log_probs}, {"use_rollout_logprobs": True}],
    ids=["a loss without log-probs", "log-probs of the rollout"],
)
def test_they_are_remembered_in_a_pass_of_their_own_where_no_log_probs_are_computed(
    trained: Trained, given: Any
) -> None:
    assert trained(**given) == [("forget", None), *REMEMBERED, *STEPS]


def test_they_are_remembered_again_where_steps_leave_out_samples_that_the_estimator_needed(trained: Trained) -> None:
    whole = [("remember", [[0], [1], [2], [3]]), ("remember", [[4], [5], [6], [7]])]
    assert trained(estimator_that_reads) == [*whole, ("forget", None), *REMEMBERED, *STEPS]
    everything = trained(estimator_that_reads, skip_zero_advantages=False)
    assert everything == [*whole, *(("step", own) for _, own in whole), ("forget", None)]


def test_a_single_step_needs_no_memory_as_its_weights_are_those_that_choose(trained: Trained) -> None:
    assert trained(num_steps_per_rollout=1) == [("step", FIRST + SECOND), ("forget", None)]


def test_a_backend_that_repeats_nothing_is_asked_for_log_probs_alone(trained: Trained) -> None:
    assert trained(replays=False) == [("log_probs", FIRST), ("log_probs", SECOND), *STEPS]
