"""What this distribution gives to slime. Named in `pyproject.toml` under the entry-point group `slime`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_focal_loss.arguments import FocalArguments

    return [FocalArguments]


@hookimpl
def slime_losses() -> dict[str, Lazy]:
    return {
        "focal_loss": Lazy(
            "slime_focal_loss.focal:focal_loss",
            "NLL with well-predicted tokens turned down",
            reads_options=("focal_gamma",),
        )
    }
