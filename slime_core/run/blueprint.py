"""What a worker process needs to make its worker. Plain data: no function, no object of a plugin.

A worker finds the plugins of its own machine from entry points, and refuses to start when they are not the driver's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import create_model

from slime_core.arguments import RunArguments
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import remember_secrets
from slime_core.plugins import Plugins
from slime_core.plugins.discovery import Switches
from slime_core.remote_code import trust_remote_code
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.plan import Plan
from slime_core.run.workers import make_rollout_worker, make_train_worker
from slime_core.runtime.slots import Slot, set_engine_slots
from slime_core.training.worker import TrainWorker


@dataclass(frozen=True)
class Blueprint:
    """Everything that the driver tells a worker process about the run.

    Attributes:
        arguments: the resolved arguments.
        switches, fingerprint: which plugins may be loaded, and which the driver has loaded.
        run_dir: the run directory.
        folder, import_path: the driver's working directory and `sys.path`: relative paths and import paths of the
            options mean the same in a worker, where these folders exist.
    """

    arguments: dict[str, Any]
    switches: Switches
    fingerprint: dict[str, str]
    run_dir: Path
    folder: str
    import_path: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, run_dir: Path) -> Blueprint:
        """The blueprint of a planned run."""
        path = tuple(os.path.abspath(entry) for entry in sys.path)
        plugins = plan.plugins
        arguments = plan.args.model_dump()
        return cls(arguments, plugins.switches, plugins.fingerprint(), run_dir, os.getcwd(), path)

    def rebuild(self) -> tuple[RunArguments, Plugins]:
        """Make the arguments and load the plugins in this process, and return (arguments, plugins).

        Raises:
            PluginError: the plugins differ from the driver's; says which.
        """
        sys.path[:0] = [entry for entry in self.import_path if entry not in sys.path and os.path.exists(entry)]
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        plugins = Plugins(switches=self.switches)
        plugins.require_same(self.fingerprint, "the driver")
        namespace = Namespace(plugins)
        # Options of a family (`ArgumentGroup.families`) are taken as they are: the driver has looked them up, and that may
        # mean to import the program that defines them.
        family: dict[str, Any] = dict.fromkeys(self.arguments.keys() - namespace.options.keys(), (Any, None))
        model = create_model("Arguments", __base__=namespace.model, **family) if family else namespace.model
        args = model(**self.arguments)
        remember_secrets(args)
        trust_remote_code(args.trust_remote_code)
        return args, plugins


@dataclass(frozen=True)
class RolloutMaker:
    """Makes the rollout worker.

    Attributes:
        data_state: where the data source goes on, from a checkpoint.
        slots: the places of the engine's servers.
    """

    blueprint: Blueprint
    data_state: dict[str, Any] | None
    slots: list[Slot]

    def make(self) -> tuple[RolloutWorker, Plugins]:
        """Make the worker in this process, and return it with the plugins that were loaded for it."""
        args, plugins = self.blueprint.rebuild()
        set_engine_slots(self.slots)
        return make_rollout_worker(args, plugins, self.data_state), plugins


@dataclass(frozen=True)
class TrainMaker:
    """Makes the worker of a training rank."""

    blueprint: Blueprint

    def make(self) -> tuple[TrainWorker, Plugins]:
        """Make the worker in this process, and return it with the plugins that were loaded for it."""
        args, plugins = self.blueprint.rebuild()
        return make_train_worker(args, plugins, self.blueprint.run_dir), plugins
