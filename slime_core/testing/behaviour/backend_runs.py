"""What the checks of train backends share: backends that have loaded a tiny model, losses for them, and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.arguments.further import choose_further
from slime_core.contracts.loss import LossFunction, LossInputs, LossOutputs
from slime_core.contracts.train_backend import Role, TrainBackend, TrainBatch
from slime_core.plugins import Selected
from slime_core.sample import Sample
from slime_core.testing.subject import Subject
from slime_core.training.batches import make_train_batch
from slime_core.training.components import TrainComponents

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments


def ready_backend(
    subject: Subject[TrainBackend], loss: LossFunction | None = None, role: Role = "actor"
) -> TrainBackend:
    """Return a backend that has loaded the model. It is closed after the check."""
    backend = subject.closing(new_backend(subject))
    backend.setup(loss or negative_log_likelihood, 4, role)
    return backend


def new_backend(subject: Subject[TrainBackend]) -> TrainBackend:
    """Return a backend that has not loaded a model. Whoever calls closes it."""
    subject.need_checkpoint(weights=True)
    return subject.call(subject.args, extras={"components": _components(subject)})


def _components(subject: Subject[TrainBackend]) -> TrainComponents:
    """Return the components of a run that has chosen the subject and no advantages.

    Raises:
        PluginError: an option names a component that is not installed.
    """
    further = choose_further(subject.resolved.args, subject.plugins, (subject.selected,))
    subject.helpers = list(further.values())
    loss: Selected[LossOutputs] = Selected("loss", "nll", negative_log_likelihood, "the kit", "the kit")
    return TrainComponents(subject.selected, loss, further=further)


def negative_log_likelihood(args: RunArguments, inputs: LossInputs) -> LossOutputs:
    """Return the negative log-likelihood of the trained tokens, the loss of a language model."""
    return LossOutputs(inputs.reduce(-inputs.log_probs))


def squared_error(args: RunArguments, inputs: LossInputs) -> LossOutputs:
    """Return the squared error of a critic's values."""
    assert inputs.values is not None
    assert inputs.returns is not None
    return LossOutputs(inputs.reduce((inputs.values - inputs.returns).square()))


def loss_that_keeps(seen: list[LossInputs]) -> LossFunction:
    """Return a loss that adds to `seen` what it is given."""

    def loss(args: RunArguments, inputs: LossInputs) -> LossOutputs:
        seen.append(inputs)
        return negative_log_likelihood(args, inputs)

    return loss


def expect_per_token(
    subject: Subject[TrainBackend], name: str, batch: TrainBatch, found: Sequence[Sequence[float]]
) -> None:
    """Raise `ContractError` unless `found`, which the method `name` gave, has a number for each response token, and 0
    for those that are not trained or not computed."""
    lengths = [sample.response_length for sample in batch.samples]
    subject.expect(
        [len(values) for values in found] == lengths,
        f"{name} gave {[len(values) for values in found]} numbers per sample; expected response_length, {lengths}.",
    )
    computed = {i for micro_batch in batch.micro_batches for i in micro_batch}
    others = [
        value
        for i, sample in numbered(batch)
        for value, trained in zip(found[i], sample.trained_mask, strict=True)
        if i not in computed or not trained
    ]
    subject.expect(not any(others), f"{name} gave {others} for tokens that are not trained or skipped; expected 0.0.")


def of_trained_tokens(batch: TrainBatch, column: Sequence[Sequence[float]]) -> list[float]:
    """Return the entries of trained tokens, in the order in which losses are given them."""
    return [
        value
        for micro_batch in batch.micro_batches
        for i in micro_batch
        for value, trained in zip(column[i], batch.samples[i].trained_mask, strict=True)
        if trained
    ]


def numbered(batch: TrainBatch) -> list[tuple[int, Sample]]:
    """Return the samples of a batch with their numbers."""
    return list(enumerate(batch.samples))


def two_groups(**options: Any) -> TrainBatch:
    """Return two groups of two samples of different lengths, one with an untrained token, in two micro-batches.

    Args:
        options: of `slime_core.training.batches.make_train_batch`.
    """
    samples = [
        Sample(
            group_index=i // 2,
            index=i,
            tokens=[*range(10 + i // 2, 16), *range(20 + i, 24 + 2 * i)],
            response_length=4 + i,
            loss_mask=[1, int(i != 2)] + [1] * (2 + i),
        )
        for i in range(4)
    ]
    return make_train_batch(samples, micro_batch_size=2, **options)


def weights_of(backend: TrainBackend) -> dict[str, Tensor]:
    """Return a copy of all weights by name."""
    return {name: value.detach().clone() for name, value in backend.weights()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two models have the same weights under the same names, bit for bit."""
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)
