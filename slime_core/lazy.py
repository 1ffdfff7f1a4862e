"""`Lazy`: a component named by where it lives, imported only when a run selects it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lazy:
    """What a provider hook returns for a component whose module imports something heavy.

    Attributes:
        target: "package.module:attribute".
        summary: one line for `slime plugins`.
        aliases: further names that select this component, such as the import path it had in slime.
    """

    target: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
