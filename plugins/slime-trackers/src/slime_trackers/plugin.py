"""Entry point: the trackers and their options. Imports neither tensorboard nor wandb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.arguments import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_trackers.arguments import TensorboardArguments, WandbArguments

    return [TensorboardArguments, WandbArguments]


@hookimpl
def slime_trackers() -> dict[str, Lazy]:
    return {
        "tensorboard": Lazy("slime_trackers.tensorboard_tracker:TensorboardTracker", summary="TensorBoard event files"),
        "wandb": Lazy("slime_trackers.wandb_tracker:WandbTracker", summary="Weights & Biases, online or offline"),
    }
