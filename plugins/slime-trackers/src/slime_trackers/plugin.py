"""What this distribution provides to slime. Imports none of the packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_trackers import arguments as own

    return [
        *(own.TensorboardArguments, own.WandbArguments),
        *(own.MlflowArguments, own.TrackioArguments, own.SwanlabArguments),
    ]


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
        "mlflow": Lazy(
            "slime_trackers.mlflow_tracker:MlflowTracker",
            "MLflow, a server or local files",
            reads_options=("MlflowArguments",),
            check="slime_trackers.checks:mlflow",
        ),
        "trackio": Lazy(
            "slime_trackers.trackio_tracker:TrackioTracker",
            "trackio, a local dashboard",
            reads_options=("TrackioArguments",),
            check="slime_trackers.checks:trackio",
        ),
        "swanlab": Lazy(
            "slime_trackers.swanlab_tracker:SwanlabTracker",
            "SwanLab, online or offline",
            reads_options=("SwanlabArguments",),
            check="slime_trackers.checks:swanlab",
        ),
    }
