"""Makes the two workers of a run, in this process or in one of their own, and chooses between the two."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.contracts.data import DataSource
from slime_core.plugins import Plugins
from slime_core.rollout.components import RolloutComponents, choose_rollout_components, with_engine
from slime_core.rollout.in_flight import load_state
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.plan import Plan
from slime_core.runtime.handles import Handle, LocalHandle
from slime_core.training.components import TrainComponents, choose_train_components
from slime_core.training.profiling import Profiler
from slime_core.training.worker import TrainWorker

if TYPE_CHECKING:
    from slime_core.run.tracking import Console


@dataclass
class Workers:
    """The handles of a run's workers; no trainer under `--debug-rollout-only`."""

    rollouts: Handle[RolloutWorker]
    trainer: Handle[TrainWorker] | None

    def close(self) -> None:
        """End both workers, whatever they are doing; the second one also if ending the first one fails."""
        with ExitStack() as stack:
            for handle in (self.trainer, self.rollouts):
                if handle is not None:
                    stack.callback(handle.close)


def start_workers(plan: Plan, run_dir: Path, data_state: dict[str, Any] | None, console: Console) -> Workers:
    """Start both workers, on Ray where the plan has a layout and else on threads of this process, and return their handles.

    Args:
        data_state: where the data source goes on, from a checkpoint.
    """
    if plan.layout is not None:
        from slime_core.runtime.connect import prepare

        prepare(plan.layout.address)
        from slime_core.run.on_ray import on_cluster

        return on_cluster(plan, plan.layout, run_dir, data_state, console)
    args, plugins, chosen = plan.args, plan.plugins, plan.components
    rollouts = LocalHandle(make_rollout_worker(args, plugins, data_state, chosen.rollouts, plan.data_source), "rollout")
    try:
        trainer = None
        if not args.debug_rollout_only:
            trainer = LocalHandle(make_train_worker(args, plugins, run_dir, chosen.training), "trainer")
    except BaseException:
        rollouts.close()
        raise
    return Workers(rollouts, trainer)


def make_rollout_worker(
    args: RunArguments,
    plugins: Plugins,
    data_state: dict[str, Any] | None,
    components: RolloutComponents | None = None,
    data_source: DataSource | None = None,
) -> RolloutWorker:
    """Make the rollout worker with its data source and its engine, in this process.

    Args:
        components, data_source: those of the plan; in a process of its own, the worker makes them itself.
    """
    chosen = components or with_engine(choose_rollout_components(args, plugins), args, plugins)
    source = data_source or chosen.open_data(args)
    if data_state is not None:
        load_state(source, data_state)
    engine = chosen.engine(args) if chosen.engine is not None else None
    return RolloutWorker(args, plugins, chosen, source, engine)


def make_train_worker(
    args: RunArguments, plugins: Plugins, run_dir: Path, components: TrainComponents | None = None
) -> TrainWorker:
    """Make the worker of one training rank, in this process. Only rank 0 writes a profile.

    Args:
        components: those of the plan; in a process of its own, the worker chooses them itself.
    """
    chosen = components or choose_train_components(args, plugins)
    first = os.environ.get("RANK", "0") == "0"
    profiled = args if first else args.model_copy(update={"use_pytorch_profiler": False})
    return TrainWorker(args, plugins, chosen, Profiler(profiled, run_dir), derived(args.num_rollout))
