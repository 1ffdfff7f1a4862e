"""Makes the two workers of a run, in the process that calls: the driver's or, in a cluster, the worker's own."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.contracts.data import DataSource
from slime_core.plugins import Plugins
from slime_core.rollout.components import RolloutComponents, choose_rollout_components, with_engine
from slime_core.rollout.in_flight import load_state
from slime_core.rollout.worker import RolloutWorker
from slime_core.runtime.handles import Handle
from slime_core.training.components import TrainComponents, choose_train_components
from slime_core.training.profiling import Profiler
from slime_core.training.worker import TrainWorker


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
    source = chosen.open_data(args) if data_source is None else data_source
    if data_state is not None:
        load_state(source, data_state)
    engine = chosen.engine(args) if chosen.engine is not None else None
    return RolloutWorker(args, plugins, chosen, source, engine, closes_data=data_source is None)


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
