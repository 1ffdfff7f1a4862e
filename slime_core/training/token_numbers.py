"""`TokenNumbers`: what a rollout was trained with and what the model found, token by token, for those who watch a run (the observer
`slime_rollout_trained`). Made by `TrainWorker`, which lets `WatchedLoss` listen where somebody watches.

Nothing is computed for it: the log-probs and entropies are those that the loss was given. They stay where they are until
somebody asks for a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.plugins import Selected
from slime_core.sample import Sample
from slime_core.token_arrays import array_of, num_trained, trained
from slime_core.training.signals import Column

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.token_columns import Array

Numbers = list[float | None]
"""One for every token of a response; None where a token is not trained, or was not computed."""


@dataclass(frozen=True)
class _Part:
    """The tokens of one sample within what the loss was given for a micro-batch."""

    start: int
    count: int
    log_probs: Tensor
    entropy: Tensor | None


@dataclass(frozen=True)
class TokenNumbers:
    """The numbers of the tokens of a rollout that has been trained on.

    Attributes:
        columns: by name ("advantages", "old_log_probs", …), one row for each sample; see `slime_core.training.columns`.
        samples: of the rollout.
    """

    samples: Sequence[Sample]
    columns: Mapping[str, Column]
    _of_loss: Mapping[int, _Part] = field(default_factory=dict, repr=False)

    def of(self, place: int, *names: str) -> dict[str, Numbers]:
        """Return the numbers of the sample at this place in `samples`, by name.

        Names are those of the columns, and "log_probs" and "entropy" under the weights that its optimizer step began with. These two
        are there in the training ranks that computed the sample, entropy only where the loss reads it.

        Args:
            names: give these alone, as far as they are there; without any, give all.
        """
        sample = self.samples[place]
        mask = trained(sample)
        found: dict[str, Numbers] = {}
        for name, rows in self.columns.items():
            if not names or name in names:
                found[name] = _spread(array_of(rows[place])[mask].tolist(), mask)
        part = self._of_loss.get(id(sample))
        if part is not None and part.count == num_trained(sample):
            for name, values in (("log_probs", part.log_probs), ("entropy", part.entropy)):
                if values is not None and (not names or name in names):
                    found[name] = _spread(values[part.start : part.start + part.count].tolist(), mask)
        return found


def _spread(numbers: list[float], mask: Array) -> Numbers:
    """The numbers of the trained tokens at their places in the response."""
    if len(numbers) == len(mask):
        return [*numbers]
    found: Numbers = [None] * len(mask)
    for place, number in zip(mask.nonzero()[0].tolist(), numbers, strict=True):
        found[place] = number
    return found


class WatchedLoss:
    """The loss of a run, which keeps the numbers of tokens that it is given while a rollout is trained on. Everything else of it is
    the loss's own.

    Args:
        loss: the chosen component.
    """

    def __init__(self, loss: Selected[LossOutputs]) -> None:
        self._loss = loss
        self._parts: dict[int, _Part] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __call__(self, args: Any, inputs: LossInputs) -> LossOutputs:
        """Call the loss, and keep log-probs and entropies, detached, if `listen` was called."""
        if self._parts is not None and inputs.responses is not None:
            log_probs, start = inputs.log_probs.detach(), 0
            entropy = None if inputs.entropy is None else inputs.entropy.detach()
            for sample in inputs.responses.samples:
                count = num_trained(sample)
                self._parts[id(sample)] = _Part(start, count, log_probs, entropy)
                start += count
        return self._loss(args, inputs)

    def listen(self) -> None:
        """Keep numbers from now on."""
        self._parts = {}

    def heard(self, samples: Sequence[Sample], columns: Mapping[str, Column]) -> TokenNumbers:
        """The numbers of a rollout, from what was kept since `listen`; nothing more is kept."""
        parts, self._parts = self._parts or {}, None
        return TokenNumbers(samples, columns, parts)
