"""`Look`: one thing that is looked at before a run starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from slime_core.contracts.checking import Checking
from slime_core.contracts.data import DataSource


@dataclass
class Scene(Checking):
    """What the core's own looks see: what components' checks see, and the data source.

    Attributes:
        data_source: at its beginning; None where it cannot be opened, which is told already.
        to_come: what earlier stages will have written, as their options name it.
    """

    data_source: DataSource | None = None
    to_come: Collection[str] = ()


@dataclass(frozen=True)
class Look:
    """One look.

    Attributes:
        name: for messages about the look itself.
        opens: what is opened for it, in words.
        see: says what it finds. A `SlimeError` that it raises is an error of the run.
    """

    name: str
    opens: str
    see: Callable[[Scene], None]


def look_at(scene: Scene, looks: Sequence[Look]) -> None:
    """Take all looks, also those behind one that finds something wrong."""
    for look in looks:
        with scene.noting():
            look.see(scene)
