"""Starts a planned run: run directory, checkpoint to resume from, workers, loop; and ends it cleanly."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.errors import ArgumentError, CheckpointError, WorkerDied
from slime_core.loop import train
from slime_core.plugins.registry import fingerprint_differences
from slime_core.rollout.worker import RolloutResult, RolloutWorker
from slime_core.run import checkpoints
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.plan import Plan
from slime_core.run.run import Run
from slime_core.run.start import start_workers
from slime_core.run.tracking import Console, JsonlTracker, Tracking
from slime_core.run.workers import Workers
from slime_core.runtime.handles import wait
from slime_core.training.initial_weights import start_in_words
from slime_core.training.worker import TrainWorker

logger = logging.getLogger(__name__)


def launch(plan: Plan, ahead: bool) -> Path:
    """Run a plan to its end, close what it has opened and return the run directory.

    Args:
        ahead: `train-async`: make the next samples while training on the present ones.
    """
    args, plugins, chosen = plan.args, plan.plugins, plan.components
    num_rollout, run_dir = derived(args.num_rollout), Path(derived(args.run_dir))
    in_background = chosen.rollouts.works_in_background
    _check_command(plan, ahead, in_background)
    identity = {
        "arguments": plan.resolved.result_arguments(),
        "data": plan.data_source.fingerprint(),
        "plugins": plugins.fingerprint(),
    }
    previous, start, state = _find_previous(plan, identity)
    early = _early_stopping(args, state)
    run_dir.mkdir(parents=True, exist_ok=True)
    config = {**plan.config(), "resume_after": start - 1 if previous else None}
    _write_config(run_dir / "config.yaml", config)
    console = Console(total=num_rollout, done=start)
    jsonl = JsonlTracker(run_dir / "metrics.jsonl", resume_after=config["resume_after"])
    console.say(f"run directory: {run_dir}")
    for role, component in config["components"].items():
        console.say(f"{role}: {component}")
    for note in plan.notes:
        console.say(f"note: {note}")

    tracking: Tracking | None = None
    workers: Workers | None = None
    error: BaseException | None = None
    plugins.notify("slime_run_started", args=args, run_dir=run_dir)
    try:
        tracking = Tracking(jsonl, console, chosen.trackers, args, run_dir, config)
        workers = start_workers(plan, run_dir, state["data_source"] if state else None, console)
        generates = chosen.rollouts.engine_use != "never"
        takes_turns = args.offload and args.colocate and generates and workers.trainer is not None
        if takes_turns:
            wait(workers.rollouts.call(RolloutWorker.offload), "the engine to give back its memory")
        if workers.trainer is not None:
            console.say("loading the model …")
            wait(workers.trainer.call(TrainWorker.setup), "the model to load")
            if previous:
                wait(workers.trainer.call(TrainWorker.load, previous), "the checkpoint to load")
                console.say(f"resumed from {previous}: {start} of {num_rollout} rollouts are done")
            elif args.load:
                console.say(start_in_words(args))
        run = Run(
            *(args, plugins, run_dir, workers.rollouts, workers.trainer, tracking, identity),
            components=chosen,
            takes_turns=takes_turns,
            early_stopping=early,
            trained=start,
            prefetched=RolloutResult.from_dict(state["prefetched"]) if state and state.get("prefetched") else None,
        )
        if early and early.stopped:
            console.say("this run was stopped early by --early-stopping-patience; nothing is left to do")
        else:
            train(run, start, num_rollout, ahead and not in_background)
        if args.save_hf and start >= num_rollout:
            run.export(start - 1)
        if workers.trainer is not None:
            wait(workers.trainer.call(TrainWorker.finish), "the profiler")
    except BaseException as caught:
        error = caught
        if isinstance(error, WorkerDied):
            error.add_note(_how_to_resume(args))
        raise
    finally:
        with ExitStack() as stack:  # each of these, also if the one before fails
            stack.callback(plugins.notify, "slime_run_finished", args=args, error=error)
            if tracking:
                stack.callback(tracking.close, error)
            else:
                stack.callback(jsonl.close)
                stack.callback(console.close)
            stack.callback(plan.close)
            if workers is not None:
                stack.callback(workers.close)
    return run_dir


def _check_command(plan: Plan, ahead: bool, in_background: bool) -> None:
    """Raise `ArgumentError` if the run was started with `slime train` and needs `slime train-async`, or the other way round."""
    if ahead and plan.args.offload:
        raise ArgumentError(
            "--offload takes turns, but train-async generates and trains at the same time; use `slime train`."
        )
    if in_background and not ahead:
        raise ArgumentError(
            f"The {plan.components.rollouts.rollout.label} generates while the trainer trains, which `slime train` does not do; "
            "use `slime train-async`."
        )


def _early_stopping(args: RunArguments, state: dict[str, Any] | None) -> EarlyStopping | None:
    if not args.early_stopping_patience:
        return None
    early = EarlyStopping(args.early_stopping_patience, args.early_stopping_metric)
    if state and state["early_stopping"]:
        early.load_state_dict(state["early_stopping"])
    return early


def _how_to_resume(args: RunArguments) -> str:
    """What to do after the run lost a worker."""
    if args.save and (newest := checkpoints.find_latest(Path(args.save))):
        return f"To go on from {newest.name}, start the same command again with --load {args.save}."
    return "There is no checkpoint to go on from" + (
        "." if args.save else "; --save DIR --save-interval N writes some."
    )


def _find_previous(plan: Plan, identity: dict[str, Any]) -> tuple[Path | None, int, dict[str, Any] | None]:
    """Find the checkpoint to go on from, and return (its folder, the first rollout to run, its stored state); the folder and
    the state are None in a new run."""
    args = plan.args
    if args.save and not args.debug_rollout_only:
        checkpoints.require_own(Path(args.save))
    newest = checkpoints.find_latest(Path(args.load)) if args.load else None
    if newest is None:
        if args.save and (existing := checkpoints.find_latest(Path(args.save))):
            raise CheckpointError(
                f"--save {args.save} holds a checkpoint of an earlier run ({existing.name}), which a new run would overwrite. "
                f"Add --load {args.save} to go on with it, or choose another folder."
            )
        return None, 0, None
    state = checkpoints.load_state(newest)
    defaults = {name: option.default for name, option in plan.resolved.namespace.options.items()}
    if args.num_rollout and (changes := _changes(state, identity, defaults)):
        text = f"This is not the run that {newest} was saved by: {'; '.join(changes)}."
        if args.on_resume_change == "error":
            raise CheckpointError(f"{text} Restore them, or go on all the same with --on-resume-change warn.")
        logger.warning("%s", text)
    return newest, state["rollout_id"] + 1, state


def _changes(state: dict[str, Any], identity: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """What differs between the checkpoint's run and this one, one phrase each.

    Args:
        defaults: of all options that there are.
    """
    found = []
    then, now = state["arguments"], identity["arguments"]
    for name in sorted(set(then) | set(now)):
        # An option that did not exist then, or does not now, had its default, if it has one.
        before, after = (arguments.get(name, defaults.get(name)) for arguments in (then, now))
        if before != after:
            found.append(f"--{name.replace('_', '-')} was {before!r} and is {after!r}")
    then, now = state["data"], identity["data"]
    for name in sorted(set(then) | set(now)):
        if name not in now:
            found.append(f"the data file {name} is gone")
        elif name not in then:
            found.append(f"the data file {name} is new")
        elif then[name] != now[name]:
            found.append(f"the data file {name} has changed")
    for difference in fingerprint_differences(state["plugins"], identity["plugins"]):
        logger.warning("plugins differ between the checkpoint (there) and this run (here): %s", difference)
    return found


def _write_config(path: Path, config: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, path)
