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
        reads_options: the options that it reads, by name or by the name of their group; see
            `slime_core.contracts.options`. None: it says nothing about that.
        check: "package.module:function", a function that checks a run before it starts; see `slime_core.contracts.checking`.
    """

    target: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    reads_options: tuple[str, ...] | None = None
    check: str = ""

    def __post_init__(self) -> None:
        """Raises:
        TypeError: a text where several names are expected, each letter of which would be one.
        """
        for field in ("aliases", "reads_options"):
            if isinstance(given := getattr(self, field), str):
                raise TypeError(
                    f"Lazy({self.target!r}): {field} is the text {given!r}; expected a tuple: ({given!r},)."
                )
