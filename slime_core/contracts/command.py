"""Subcommands of `slime`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.kind import Kind

if TYPE_CHECKING:
    from slime_core.plugins import Plugins


def command(argv: list[str], plugins: Plugins) -> int:
    """Run `slime NAME argv…` and return the exit status. A `SlimeError` is printed without traceback."""
    raise NotImplementedError


KINDS = (Kind("command", "slime_commands", command, ("slime COMMAND",)),)
