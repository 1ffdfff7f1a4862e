"""What a train backend or an engine holds in memory: declared before a run starts, summed by `slime_core.run.memory`, printed by
`slime check`. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, Protocol, runtime_checkable

Phase = Literal["generate", "hand over", "train", "step"]
"""What a run does in turn: generate samples, hand weights over to the engine, go forward and backward, take the optimizer's step."""

ALWAYS: frozenset[Phase] = frozenset({"generate", "hand over", "train", "step"})


@dataclass(frozen=True)
class ModelShape:
    """A model without its weights.

    Attributes:
        parameters: shapes by Hugging Face name, tied ones once.
        config: the language model's part of config.json, as transformers completes it.
    """

    parameters: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of its weights."""
        return sum(prod(shape) for shape in self.parameters.values())


@dataclass(frozen=True)
class Part:
    """Something that a process holds.

    Attributes:
        name: for a person, such as "gradients".
        size: bytes.
        of: how they are counted, such as "4.02e9 weights × 4 bytes".
        when: the phases in which it is there.
        less: the option that makes it smaller, in words; "" where none does.
    """

    name: str
    size: float
    of: str = ""
    when: frozenset[Phase] = ALWAYS
    less: str = ""


@dataclass(frozen=True)
class Holding:
    """What one rank, or one server, holds on each of its devices: the largest of all.

    Attributes:
        parts: all of it.
        weight_bytes: of one weight as it is handed to the engine.
        unknown: sentences about what could not be counted.
    """

    parts: Sequence[Part]
    weight_bytes: int = 4
    unknown: Sequence[str] = ()


@dataclass(frozen=True)
class MemoryUse:
    """What else decides about memory.

    Attributes:
        ranks: that train.
        role: of the model in training: "actor", "critic" or "reference".
        entropy: the loss reads entropies.
        weight_bytes: for an engine, of one weight as the trainer hands it over.
        own_process: for an engine, that it is not in the process that trains.
        takes_turns: nothing is generated while the trainer trains, after which all weights are handed over anew. (Of
            `slime train`; in `slime train-async` something is.)
        on_gpu: the run is for GPUs.
        device: bytes of one of them, where they are known.
    """

    ranks: int = 1
    role: Literal["actor", "critic", "reference"] = "actor"
    entropy: bool = False
    weight_bytes: int = 4
    own_process: bool = False
    takes_turns: bool = False
    on_gpu: bool = True
    device: float | None = None


@runtime_checkable
class EstimatesMemory(Protocol):
    """A train backend or engine class that can say before a run what it will hold."""

    @staticmethod
    def memory(args: Any, model: ModelShape, use: MemoryUse) -> Holding:
        """What a rank or a server holds on its device, if a micro-batch is as long as the options allow.

        Raises:
            ArgumentError: the options do not fit the model.
        """
        raise NotImplementedError
