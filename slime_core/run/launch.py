"""Starts a planned run: run directory, checkpoint to resume from, workers, loop; and ends it cleanly."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.arguments.resolve import BY_TIME
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import ArgumentError, OutputError, WorkerDied
from slime_core.loop import train
from slime_core.plugins.boundaries import at_home, children
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.best import keeps_best, require_begun_with, take_over_best
from slime_core.run.checkpoints import load_state, set_newer_aside
from slime_core.run.claims import Claims
from slime_core.run.console import Console
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.end import name_left_behind, take_all
from slime_core.run.evaluation import drop_later_generations, is_due
from slime_core.run.output import writing
from slime_core.run.plan import Plan
from slime_core.run.requests import Requests
from slime_core.run.resume import find_previous, finish_removing, how_to_resume, last_logged, set_earlier_run_aside
from slime_core.run.rollouts import Rollout
from slime_core.run.run import Run
from slime_core.run.start import start_workers
from slime_core.run.summary import Summary
from slime_core.run.tracking import JsonlTracker, Tracking
from slime_core.run.workers import Workers
from slime_core.runtime.handles import wait
from slime_core.runtime.layout import require_ray
from slime_core.start_up import collect_again
from slime_core.training.initial_weights import start_in_words
from slime_core.training.worker import TrainWorker
from slime_core.whole_file import write_whole
from slime_core.yaml_text import to_yaml

logger = logging.getLogger(__name__)


def launch(plan: Plan, ahead: bool) -> Path:
    """Run a plan to its end, close what it has opened and return the run directory.

    Args:
        ahead: `train-async`: make the next samples while training on the present ones.
    """
    _check_command(plan, ahead, plan.components.rollouts.works_in_background)
    with Claims() as claims, at_home():
        plan = _with_free_run_dir(plan)
        claims.claim("--run-dir", Path(derived(plan.args.run_dir)))
        if plan.args.save and not plan.args.debug_rollout_only:
            claims.claim("--save", Path(plan.args.save))
        return _launch(plan, ahead)


def _launch(plan: Plan, ahead: bool) -> Path:
    args, plugins, chosen = plan.args, plan.plugins, plan.components
    num_rollout, run_dir = derived(args.num_rollout), Path(derived(args.run_dir))
    in_background = chosen.rollouts.works_in_background
    identity: dict[str, Any] = {
        "arguments": plan.resolved.result_arguments(),
        "data": plan.data_source.fingerprint(),
        "plugins": plugins.fingerprint(),
    }
    previous, start, state = find_previous(plan, identity)
    started_before = set(children())
    early = _early_stopping(args, state)
    trains = start < num_rollout and not args.debug_rollout_only
    newer, anew = None, state is None or state["rollout_id"] + 1 != start  # it counts from here on
    identity["begun_with"] = state.get("begun_with") if state else None
    begun_with = Path(identity["begun_with"]) if identity["begun_with"] else None
    exports_initial = _initial_weights_may_be_best(args, early, start)
    if previous is not None:
        take_over_best(args, early, previous)
        if exports_initial and begun_with is not None:
            require_begun_with(args, begun_with)
        if trains:
            newer = set_newer_aside(args.save, previous)
        finish_removing(args, previous)
    set_aside = set_earlier_run_aside(run_dir) if anew else None
    due = state is not None and state.get("evaluation_due") and num_rollout and is_due(args, start - 1)
    again = start - 1 if due else None  # the rollout after which an evaluation is made up for
    behind = (
        start - 1 if trains else max(start - 1, last_logged(run_dir))
    )  # who only looks at a checkpoint drops nothing
    config = {**plan.config(), "resume_after": None if anew else behind}
    _write_config(run_dir / "config.yaml", config)
    if args.dump_details:
        load_tokenizer(args.hf_checkpoint).save_pretrained(Path(args.dump_details) / "tokenizer")
    console = Console(total=num_rollout, done=start)
    jsonl = JsonlTracker(run_dir / "metrics.jsonl", config["resume_after"], again)
    if not anew:
        drop_later_generations(run_dir, behind)
    console.say(f"run directory: {run_dir}")
    if args.keep_old_actor and not ahead and args.update_weights_interval == 1:
        console.say(
            "note: --keep-old-actor has no effect: in `slime train` the engine has the trainer's weights in every rollout, unless "
            "--update-weights-interval says otherwise."
        )
    if newer and previous:
        console.say(
            f"note: checkpoints that are newer than {previous.name}, which the run goes on from, are now in {newer}"
        )
    if set_aside:
        console.say(f"note: metrics, configuration and evaluations of an earlier run are now in {set_aside}")
    for role, component in config["components"].items():
        console.say(f"{role}: {component}")
    for note in plan.notes:
        console.say(f"note: {note}")

    tracking: Tracking | None = None
    workers: Workers | None = None
    error: BaseException | None = None
    summary, reports = Summary(num_rollout, start), plugins.find("command", "report") is not None
    plugins.notify("slime_run_started", args=args, run_dir=run_dir)
    try:
        tracking = Tracking(jsonl, console, chosen.trackers, args, run_dir, config, summary.note)
        workers = start_workers(plan, run_dir, state["data_source"] if state else None, console)
        generates = chosen.rollouts.engine_use != "never"
        takes_turns = args.offload and args.colocate and generates and workers.trainer is not None
        if takes_turns:
            wait(workers.rollouts.call(RolloutWorker.offload), "the engine to give back its memory")
        if workers.trainer is not None:
            console.say("loading the model …")
            wait(workers.trainer.call(TrainWorker.setup), "the model to load")
        requests = Requests(bool(args.save) and workers.trainer is not None, args.save_trigger, console)
        run = Run(
            *(args, plugins, run_dir, workers.rollouts, workers.trainer, tracking, identity),
            components=chosen,
            requests=requests,
            takes_turns=takes_turns,
            ahead=ahead and not in_background,
            early_stopping=early,
            trained=start,
            versions={start: state.get("prefetched_version")} if state and state.get("prefetched") else {},
            engine_version=state.get("engine_version") if state else None,
            prefetched=Rollout.stored(state["prefetched"], args) if state and state.get("prefetched") else None,
        )
        if exports_initial:
            if begun_with is not None and workers.trainer is not None:
                load_state(begun_with)
                wait(
                    workers.trainer.call(TrainWorker.load, begun_with), "the checkpoint that the run began with to load"
                )
            run.export(-1)
        if workers.trainer is not None:
            if previous:
                exact = wait(workers.trainer.call(TrainWorker.load, previous), "the checkpoint to load")
                console.say(f"resumed from {previous}: {start} of {num_rollout} rollouts are done")
                if not exact:
                    console.say(
                        "note: on a GPU the run goes on like the unbroken one but for rounding; bit for bit if both were started with "
                        "--deterministic-mode"
                    )
            elif args.load:
                console.say(start_in_words(args))
        if previous and again is not None:
            run.evaluate(again)
            take_over_best(args, early, previous)
        stopped_before = early if early and early.stopped and num_rollout else None
        over = start >= num_rollout or stopped_before is not None
        if previous and not over:
            run.export_with_checkpoint(start - 1)  # before which it may have been killed
        if stopped_before:
            console.say(f"{stopped_before.in_words()}; nothing is left to do")
        else:
            collect_again()
            with requests:
                train(run, start, num_rollout, ahead and not in_background)
            requests.raise_if_ended()
            if early and early.stopped:
                console.say(early.in_words())
        if over:
            run.export_at_end(start - 1)
        if workers.trainer is not None:
            wait(workers.trainer.call(TrainWorker.finish), "the profiler")
    except BaseException as caught:
        error = caught
        if isinstance(error, (WorkerDied, OutputError)):
            error.add_note(how_to_resume(args))
        raise
    finally:
        take_all(
            {
                "The summary": lambda: console.say(
                    "\n".join(summary.lines(args, run_dir, bool(early and early.stopped), reports))
                ),
                "The workers": lambda: workers.close() if workers else None,
                "What was left behind": lambda: name_left_behind(started_before),
                "The data source": plan.close,
                "The trackers": lambda: tracking.close(error) if tracking else None,
                "The metrics": jsonl.close,
                "The console": console.close,
                "The observers": lambda: plugins.notify("slime_run_finished", args=args, error=error),
            },
            error,
        )
    return run_dir


def _with_free_run_dir(plan: Plan) -> Plan:
    """A run directory that is called by the time of start gets a number, if another run started in the same second."""
    if not plan.resolved.run_dir_by_time:
        return plan
    first = folder = Path(derived(plan.args.run_dir))
    first.parent.mkdir(parents=True, exist_ok=True)
    for number in count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = first.with_name(f"{first.name}-{number}")
    return replace(plan, resolved=plan.resolved.updated(BY_TIME, run_dir=str(folder)))


def _check_command(plan: Plan, ahead: bool, in_background: bool) -> None:
    """Raise `ArgumentError` if the run was started with `slime train` and needs `slime train-async`, or the other way round."""
    require_ray(plan.args, plan.components.rollouts.engine)
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
    known = state["early_stopping"] if state else None
    if known and state and state["arguments"].get("early_stopping_metric", early.metric) == early.metric:
        early.load_state_dict(known)
    return early


def _initial_weights_may_be_best(args: RunArguments, early: EarlyStopping | None, start: int) -> bool:
    """Whether the evaluation before training may be, or was, the best one, and there are exports to keep its weights in."""
    if early is None or not keeps_best(args) or not args.num_rollout or not args.save_hf:
        return False
    return early.best_rollout == -1 if start else not args.skip_eval_before_train


def _write_config(path: Path, config: dict[str, Any]) -> None:
    with writing("The configuration", path):
        write_whole(path, to_yaml(config))
