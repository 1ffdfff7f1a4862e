"""`EarlierModel`: the actor with weights that it had before: a reference model that follows it (`--ref-update-interval`), and what
the samples of a rollout were generated with (`--keep-old-actor`, `--update-weights-interval`). Made by `TrainWorker`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from slime_core.contracts.train_backend import KeepsWeights, TrainBackend, TrainBatch

REFERENCE = "reference"
"""What the copy of a reference model is called."""


class KeepingBackend(TrainBackend, KeepsWeights, Protocol):
    """A train backend that keeps copies, as `slime_core.training.components` requires where one is needed."""


def keeping(actor: TrainBackend) -> KeepingBackend:
    """The actor of a run whose options need copies."""
    return cast(KeepingBackend, actor)


def of_version(version: int) -> str:
    """What the copy of weights of a version is called."""
    return f"version-{version}"


def forget_versions(actor: KeepingBackend, before: int) -> None:
    """Let the copies of all older versions go."""
    for name in actor.kept_weights():
        kind, _, version = name.partition("-")
        if kind == "version" and int(version) < before:
            actor.forget_weights(name)


def forget_unused(actor: TrainBackend, reference: bool, versions: bool) -> None:
    """Let the copies of a checkpoint go that the run which goes on from it has no use for.

    Args:
        reference, versions: whether it has one for that of a reference model, and for those of the engine's weights.
    """
    if not isinstance(actor, KeepsWeights):
        return
    for name in actor.kept_weights():
        if not (reference if name == REFERENCE else versions):
            actor.forget_weights(name)


class EarlierModel:
    """Computes what the actor would compute with the weights of a copy.

    Args:
        name: of the copy.
    """

    def __init__(self, actor: KeepingBackend, name: str) -> None:
        self._actor, self._name = actor, name

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens, as `TrainBackend.log_probs` returns them."""
        with self._actor.with_kept_weights(self._name):
            return self._actor.log_probs(batch)
