"""Conversions of checkpoints from one format to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.kind import Kind

if TYPE_CHECKING:
    from slime_core.plugins import Plugins


def convert_checkpoint(argv: list[str], plugins: Plugins) -> int:
    """Run `slime convert NAME argv…`: read a checkpoint in one format, write it in another, and return the exit status.

    It has options of its own, which `--help` explains; `slime_core.arguments.of_a_command.read_options` reads those that are
    declared in groups, as a run's are. What it writes is complete or not there. A tensor that it does not
    know is an error and never left out; raise a `SlimeError`, which is printed without traceback.
    """
    raise NotImplementedError


KINDS = (
    Kind("checkpoint_conversion", "slime_checkpoint_conversions", convert_checkpoint, ("slime convert CONVERSION",)),
)
