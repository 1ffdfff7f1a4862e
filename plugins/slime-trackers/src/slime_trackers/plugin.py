"""What this distribution provides to slime. Imports neither tensorboard nor wandb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_trackers.arguments import TensorboardArguments, WandbArguments

    return [TensorboardArguments, WandbArguments]


@hookimpl
def slime_trackers() -> dict[str, Lazy]:
    return {
        "tensorboard": Lazy(
            "slime_trackers.tensorboard_tracker:TensorboardTracker",
            "TensorBoard event files",
            reads_options=("TensorboardArguments", "tensorboard_dir"),
            check="slime_trackers.checks:tensorboard",
        ),
        "wandb": Lazy(
            "slime_trackers.wandb_tracker:WandbTracker",
            "Weights & Biases, online or offline",
            reads_options=("WandbArguments",),
            check="slime_trackers.checks:wandb",
        ),
    }
