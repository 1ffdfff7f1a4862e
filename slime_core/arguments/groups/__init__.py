"""The core's own options under slime's names, one file a group."""

from __future__ import annotations

from slime_core.arguments.groups.cluster import ClusterArguments
from slime_core.arguments.groups.data import DataArguments
from slime_core.arguments.groups.evaluation import EvalArguments
from slime_core.arguments.groups.lora import LoraArguments
from slime_core.arguments.groups.model import ModelArguments
from slime_core.arguments.groups.optimizer import OptimizerArguments
from slime_core.arguments.groups.output import OutputArguments
from slime_core.arguments.groups.precision import PrecisionArguments
from slime_core.arguments.groups.profiling import ProfilingArguments
from slime_core.arguments.groups.rollout import RolloutArguments
from slime_core.arguments.groups.training import TrainArguments
from slime_core.contracts.options import ArgumentGroup

GROUPS: tuple[type[ArgumentGroup], ...] = (
    ModelArguments,
    DataArguments,
    RolloutArguments,
    TrainArguments,
    OptimizerArguments,
    LoraArguments,
    PrecisionArguments,
    EvalArguments,
    OutputArguments,
    ClusterArguments,
    ProfilingArguments,
)


class RunArguments(
    ModelArguments,
    DataArguments,
    RolloutArguments,
    TrainArguments,
    OptimizerArguments,
    LoraArguments,
    PrecisionArguments,
    EvalArguments,
    OutputArguments,
    ClusterArguments,
    ProfilingArguments,
):
    """The arguments of a run, as every hook gets them: all options of the core and, at run time, those of all loaded plugins.

    A function that reads a plugin's options too says so with a class of its own, for type checkers alone:
    `class MyRunArguments(RunArguments, MyArguments): ...`
    """
