"""The options of the trackers, under slime's names."""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr

from slime_core.contracts.options import ArgumentGroup, option


class TensorboardArguments(ArgumentGroup):
    """TensorBoard"""

    use_tensorboard: bool = option(False, "Write metrics for TensorBoard into --tensorboard-dir.", affects_result=False)


class WandbArguments(ArgumentGroup):
    """Weights & Biases"""

    use_wandb: bool = option(False, "Log to Weights & Biases.", affects_result=False)
    wandb_mode: Literal["online", "offline", "disabled"] | None = option(
        None,
        "'offline' keeps everything in --wandb-dir for a later `wandb sync`. Default: WANDB_MODE, or online.",
        affects_result=False,
    )
    wandb_project: str | None = option(None, "Project. Default: WANDB_PROJECT.", affects_result=False)
    wandb_group: str | None = option(None, "Group of runs that this one belongs to.", affects_result=False)
    wandb_team: str | None = option(None, "Team or user that owns the project.", affects_result=False)
    wandb_dir: str | None = option(
        None, "Where wandb keeps its local files, in a folder wandb. Default: the run directory.", affects_result=False
    )
    wandb_host: str | None = option(
        None, "Address of an own W&B server. Default: the public one.", affects_result=False
    )
    wandb_key: SecretStr | None = option(
        None,
        "API key, used for this run and stored nowhere. Other users of the machine can read command lines: prefer "
        "`wandb login`, WANDB_API_KEY, or env:NAME for another environment variable.",
        affects_result=False,
        secret=True,
    )


class MlflowArguments(ArgumentGroup):
    """MLflow"""

    use_mlflow: bool = option(
        False, "Log to MLflow: to a server, or to a folder of this machine.", affects_result=False
    )
    mlflow_tracking_uri: str | None = option(
        None,
        "Address of the server, or a database such as sqlite:///mlflow.db. Default: MLFLOW_TRACKING_URI, or the folder mlruns in the "
        "run directory.",
        affects_result=False,
    )
    mlflow_experiment: str = option("slime", "Experiment that the run belongs to.", affects_result=False)


class TrackioArguments(ArgumentGroup):
    """trackio"""

    use_trackio: bool = option(
        False, "Log to trackio's local database, which `trackio show` shows.", affects_result=False
    )
    trackio_project: str = option("slime", "Project that the run belongs to.", affects_result=False)


class SwanlabArguments(ArgumentGroup):
    """SwanLab"""

    use_swanlab: bool = option(
        False, "Log to SwanLab: to its cloud, or to a folder of this machine.", affects_result=False
    )
    swanlab_mode: Literal["online", "offline", "local", "disabled"] | None = option(
        None,
        "'offline' keeps everything in the run directory for a later `swanlab sync`. Default: SWANLAB_MODE, or online.",
        affects_result=False,
    )
    swanlab_project: str = option("slime", "Project that the run belongs to.", affects_result=False)
    swanlab_workspace: str | None = option(None, "Workspace that owns the project.", affects_result=False)
