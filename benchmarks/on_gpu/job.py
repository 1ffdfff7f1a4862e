"""A job of `benchmarks.gpu`: a check or a measurement, with what it may take and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.on_gpu.machine import Machine

PHASES = ("checks", "sft", "grpo", "engine", "weights", "fp8", "profile")


class NotHere(Exception):
    """This machine cannot do a job: its memory is too small, or its GPU lacks the arithmetic."""


@dataclass
class Findings:
    """What a job finds. A figure outside its bound makes the job fail, after everything else of it was done.

    Attributes:
        figures: by name; numbers, texts, or lists of them.
        outside: in words, what was outside its bound.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)

    def note(self, **figures: Any) -> None:
        """Keep figures."""
        self.figures |= figures

    def within(self, name: str, value: float, bound: float) -> None:
        """Keep a figure that must be at most `bound`; NaN is not."""
        self.figures[name] = value
        if not value <= bound:
            self.outside.append(f"{name} is {value:.3g}; at most {bound:.3g} was expected")

    def holds(self, name: str, fact: bool) -> None:
        """Keep something that must be so."""
        self.figures[name] = fact
        if not fact:
            self.outside.append(f"not so: {name}")


@dataclass(frozen=True)
class Job:
    """One check or measurement.

    Attributes:
        name: such as "sft/4B"; the phase comes first.
        work: does it. Raises `NotHere` where the machine cannot.
        seconds: about how long it takes on an H100. With less left it is not begun, and after several times as many it is ended.
        alone: in a process that does nothing else, since what it starts stays.
    """

    name: str
    work: Callable[[Machine, Findings], None]
    seconds: float = 20.0
    alone: bool = False

    @property
    def phase(self) -> str:
        """The part of the name that `--phase` asks for."""
        return self.name.partition("/")[0]

    @property
    def limit(self) -> float:
        """Seconds after which it is ended."""
        return 60 + 3 * self.seconds
