"""Makes the two workers of a run: in this process, or (called by `slime_core.cluster.actor`) in one of their own; and
chooses between the two."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.background import load_state
from slime_core.contracts import DataSource
from slime_core.plan import Plan, open_data, rollout_components, train_components
from slime_core.plugins import Plugins
from slime_core.profiling import Profiler
from slime_core.rollout_worker import RolloutWorker
from slime_core.runtime import Handle, LocalHandle
from slime_core.train_worker import TrainComponents, TrainWorker

if TYPE_CHECKING:
    from slime_core.tracking import Console


@dataclass
class Workers:
    """The handles of a run's workers; no trainer under `--debug-rollout-only`."""

    rollouts: Handle
    trainer: Handle | None

    def close(self) -> None:
        """End both, whatever they are doing, the second also if that fails for the first."""
        with ExitStack() as stack:
            for handle in (self.trainer, self.rollouts):
                if handle is not None:
                    stack.callback(handle.close)


def start_workers(plan: Plan, run_dir: Path, data_state: dict[str, Any] | None, console: Console) -> Workers:
    """Both workers: on Ray where the plan has a layout, else in this process.

    Args:
        data_state: where the data source goes on, from a checkpoint.
    """
    if plan.layout is None:
        return in_this_process(plan, run_dir, data_state)
    from slime_core.cluster.connect import prepare

    prepare(plan.layout.address)
    from slime_core.cluster.start import on_cluster

    return on_cluster(plan, plan.layout, run_dir, data_state, console)


def in_this_process(plan: Plan, run_dir: Path, data_state: dict[str, Any] | None) -> Workers:
    """Both workers on threads of this process.

    Args:
        data_state: where the data source goes on, from a checkpoint.
    """
    args, plugins = plan.args, plan.plugins
    rollouts = LocalHandle(make_rollout_worker(args, plugins, data_state, plan.data_source), "rollout")
    try:
        trainer = None if args.debug_rollout_only else LocalHandle(make_train_worker(args, plugins, run_dir), "trainer")
    except BaseException:
        rollouts.close()
        raise
    return Workers(rollouts, trainer)


def make_rollout_worker(
    args: Any, plugins: Plugins, data_state: dict[str, Any] | None, data_source: DataSource | None = None
) -> RolloutWorker:
    """The rollout worker with its data source (opened here unless one is given) and its engine."""
    chosen = rollout_components(args, plugins)
    source = data_source or open_data(args, chosen)
    if data_state is not None:
        load_state(source, data_state)
    engine = chosen["engine"](args) if "engine" in chosen else None
    return RolloutWorker(
        *(args, plugins, chosen["rollout"], chosen["eval rollout"], source, engine),
        convert=chosen.get("sample converter"),
    )


def make_train_worker(args: Any, plugins: Plugins, run_dir: Path) -> TrainWorker:
    """The worker of one training rank. Rank 0 writes the profile."""
    chosen = train_components(args, plugins)
    weights = {"importance_weight": chosen.get("importance weight")}
    components = TrainComponents(
        backend=chosen["train backend"],
        loss=chosen["loss"].bind(**weights),
        advantage=chosen.get("advantage"),
        reward_post_process=chosen.get("reward post process"),
        critic_loss=chosen["critic loss"].bind(**weights) if "critic loss" in chosen else None,
    )
    first = os.environ.get("RANK", "0") == "0"
    profiled = args if first else args.model_copy(update={"use_pytorch_profiler": False})
    return TrainWorker(args, plugins, components, Profiler(profiled, run_dir), args.num_rollout)
