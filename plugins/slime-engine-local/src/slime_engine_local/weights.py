"""`Weights`: what must be written where when a weight of the engine's model changes. `LanguageModel` has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from slime_core.tensors.experts import put_together
from slime_engine_local.errors import EngineError, HalfReplaced


class Copy(Protocol):
    """A copy of a weight that the engine owns: an ordinary parameter, a `PackedLinear` or a part of fused layers."""

    def copy_(self, weight: Tensor, /) -> object: ...


@dataclass
class Weight:
    """A weight of the model; where layers are tied, it has several names.

    Attributes:
        copies: what must be written when the weight changes.
    """

    names: list[str]
    shape: torch.Size
    copies: list[Copy] = field(default_factory=list)


class Weights:
    """All weights of a module, which have no copies yet."""

    def __init__(self, module: nn.Module) -> None:
        stored: dict[int, Weight] = {}
        for name, tensor in module.state_dict(keep_vars=True).items():
            stored.setdefault(id(tensor), Weight([], tensor.shape)).names.append(name)
        self._all = list(stored.values())

    def paired(self, given: Mapping[str, Tensor]) -> list[tuple[Weight, Tensor]]:
        """Return each weight of the model with its new values, which may come under any of its names.

        Raises:
            EngineError: a weight is missing, unknown, or of another shape.
        """
        known = {name: weight.shape for weight in self._all for name in weight.names}
        given = dict(put_together(given.items(), known))
        problems = [f"{name} is unknown to the model" for name in given if name not in known]
        pairs: list[tuple[Weight, Tensor]] = []
        for weight in self._all:
            new = next((given[name] for name in weight.names if name in given), None)
            if new is None:
                problems.append(f"{weight.names[0]} is missing")
            elif new.shape != weight.shape:
                problems.append(_shapes(weight.names[0], new, weight))
            else:
                pairs.append((weight, new))
        if problems:
            raise EngineError(_misfit(problems[0], len(problems)))
        return pairs

    def update(self, given: Mapping[str, Tensor]) -> None:
        """Copy all weights. Nothing is changed when one does not fit.

        Raises:
            EngineError: a weight is missing, unknown, or of another shape.
        """
        pairs = self.paired(given)
        self._take_back()
        for weight, new in pairs:
            for own in weight.copies:
                own.copy_(new)

    def replace(self, given: Iterable[tuple[str, Tensor]]) -> None:
        """Copy all weights as they come, (name, tensor) pairs.

        Raises:
            EngineError: the first one does not fit; nothing is changed.
            HalfReplaced: a later one does not fit or does not come, or one is missing.
        """
        left = {id(weight): weight for weight in self._all}
        by_name = {name: weight for weight in self._all for name in weight.names}
        copied = 0
        self._take_back()
        try:
            for name, new in put_together(given, {name: weight.shape for name, weight in by_name.items()}):
                if (weight := by_name.get(name)) is None:
                    raise EngineError(_misfit(f"{name} is unknown to the model"))
                if new.shape != weight.shape:
                    raise EngineError(_misfit(_shapes(name, new, weight)))
                for own in weight.copies:
                    own.copy_(new)
                copied += 1
                left.pop(id(weight), None)
            if left:
                raise EngineError(_misfit(f"{next(iter(left.values())).names[0]} is missing", len(left)))
        except Exception as error:
            if not copied:
                raise
            raise HalfReplaced(f"{error} {copied} weights had been replaced by then.") from error

    def give_up(self) -> None:
        """Free the copies that are not packed, such as the embedding, until all weights are copied again."""
        for own in self._plain():
            own.untyped_storage().resize_(0)

    def _take_back(self) -> None:
        """Take memory for what `give_up` has freed."""
        for own in self._plain():
            if not own.untyped_storage().nbytes():
                own.untyped_storage().resize_(own.nbytes)

    def _plain(self) -> Iterator[nn.Parameter]:
        return (copy for weight in self._all for copy in weight.copies if isinstance(copy, nn.Parameter))


def _misfit(problem: str, problems: int = 1) -> str:
    more = f" ({problems} such problems in all)" if problems > 1 else ""
    return f"The weights handed to the engine 'local' do not fit its model: {problem}{more}."


def _shapes(name: str, new: Tensor, weight: Weight) -> str:
    return f"{name} has shape {tuple(new.shape)}, expected {tuple(weight.shape)}"
