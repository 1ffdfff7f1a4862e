"""Starts the two workers of a run: in this process or on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slime_core.run.console import Console
from slime_core.run.plan import Plan
from slime_core.run.workers import Workers, make_rollout_worker, make_train_worker
from slime_core.runtime.handles import LocalHandle


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
