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
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError, OutputError, WorkerDied
from slime_core.loop import train
from slime_core.output import writing
from slime_core.plugins.boundaries import at_home, children
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.best import keeps_best, require_begun_with, take_over_best
from slime_core.run.checkpoints import load_state, set_newer_aside
from slime_core.run.claims import Claims
from slime_core.run.console import Console
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.end import name_left_behind, take_all
from slime_core.run.evaluation import drop_later_generations
from slime_core.run.plan import Plan
from slime_core.run.requests import Requests
from slime_core.run.resume import (
    Beginning,
    find_beginning,
    finish_removing,
    how_to_resume,
    set_dumps_aside,
    set_earlier_run_aside,
)
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
        if plan.args.dump_details:
            claims.claim("--dump-details", Path(plan.args.dump_details))
        return _launch(plan, ahead)


def _launch(plan: Plan, ahead: bool) -> Path:
    args, plugins, chosen, run_dir = plan.args, plan.plugins, plan.components, Path(derived(plan.args.run_dir))
    begin = find_beginning(plan)
    started_before = set(children())
    early = _early_stopping(args, begin.state)
    exports_initial = _initial_weights_may_be_best(args, early, begin.start)
    moved = _clear_the_way(args, run_dir, begin, early, exports_initial)
    config = {**plan.config(), "resume_after": begin.resume_after(run_dir)}
    _write_config(run_dir / "config.yaml", config)
    if args.dump_details:
        _keep_what_reads_rows(args, Path(args.dump_details))
    console = Console(total=derived(args.num_rollout), done=begin.start)
    jsonl = JsonlTracker(run_dir / "metrics.jsonl", config["resume_after"], begin.to_make_up_for(plan.periods))
    if config["resume_after"] is not None:
        drop_later_generations(run_dir, config["resume_after"])
    for line in (f"run directory: {run_dir}", *_without_effect(args, ahead), *moved, *_choices(plan, config)):
        console.say(line)

    tracking: Tracking | None = None
    workers: Workers | None = None
    error: BaseException | None = None
    summary = Summary(derived(args.num_rollout), begin.start, epochs=plan.periods.epoch is not None)
    reports = plugins.find("command", "report") is not None
    plugins.notify("slime_run_started", args=args, run_dir=run_dir)
    try:
        told = {**config, "branches": begin.branches}
        tracking = Tracking(jsonl, console, chosen.trackers, args, run_dir, told, summary.note)
        workers = start_workers(plan, run_dir, begin.stored("data_source"), console)
        takes_turns = _load_model(args, workers, chosen.rollouts.engine_use != "never", console)
        run = Run(
            *(args, plugins, run_dir, workers.rollouts, workers.trainer, tracking, begin.identity),
            components=chosen,
            periods=plan.periods,
            requests=Requests(bool(args.save) and workers.trainer is not None, args.save_trigger, console),
            takes_turns=takes_turns,
            ahead=ahead and not chosen.rollouts.works_in_background,
            early_stopping=early,
            trained=begin.start,
            versions={begin.start: begin.stored("prefetched_version")} if begin.stored("prefetched") else {},
            engine_version=begin.stored("engine_version"),
            prefetched=Rollout.stored(begin.stored("prefetched"), args) if begin.stored("prefetched") else None,
        )
        _load_weights(run, begin, exports_initial)
        _work(run, begin)
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
                "The data source": plan.close,
                "The trackers": lambda: tracking.close(error) if tracking else None,
                "The metrics": jsonl.close,
                "The console": console.close,
                "The observers": lambda: plugins.notify("slime_run_finished", args=args, error=error),
                "What was left behind": lambda: name_left_behind(started_before),
            },
            error,
        )
    return run_dir


def _clear_the_way(
    args: RunArguments, run_dir: Path, begin: Beginning, early: EarlyStopping | None, exports_initial: bool
) -> list[str]:
    """Move what a run that begins here would mix with its own out of its folders, and bring what it needs there. Returns notes on it."""
    notes = []
    if begin.previous is not None:
        take_over_best(args, early, begin.previous)
        if exports_initial and begin.begun_with is not None:
            require_begun_with(args, begin.begun_with)
        if begin.trains and (newer := set_newer_aside(args.save, begin.previous)):
            name = begin.previous.name
            notes.append(
                f"note: checkpoints that are newer than {name}, which the run goes on from, are now in {newer}"
            )
        finish_removing(args, begin.previous)
    if begin.anew and (earlier := set_earlier_run_aside(run_dir)):
        notes.append(f"note: metrics, configuration and evaluations of an earlier run are now in {earlier}")
    sampled = begin.start + bool(begin.stored("prefetched"))
    for folder in set_dumps_aside(args, sampled, begin.start) if begin.trains else ():
        notes.append(
            f"note: dumps of rollouts that the run makes anew, from rollout {begin.start} on, are now in {folder}"
        )
    return notes


def _without_effect(args: RunArguments, ahead: bool) -> list[str]:
    if not args.keep_old_actor or ahead or args.update_weights_interval != 1:
        return []
    return [
        "note: --keep-old-actor has no effect: in `slime train` the engine has the trainer's weights in every rollout, unless "
        "--update-weights-interval says otherwise."
    ]


def _choices(plan: Plan, config: dict[str, Any]) -> list[str]:
    chosen = [f"{role}: {component}" for role, component in config["components"].items()]
    return [*chosen, *(f"note: {note}" for note in plan.notes)]


def _load_model(args: RunArguments, workers: Workers, generates: bool, console: Console) -> bool:
    """Let the trainer load the model. Returns whether trainer and engine take turns with the devices' memory: the trainer has it first."""
    if workers.trainer is None:
        return False
    takes_turns = args.offload and args.colocate and generates
    if takes_turns:
        wait(workers.rollouts.call(RolloutWorker.offload), "the engine to give back its memory")
    console.say("loading the model …")
    wait(workers.trainer.call(TrainWorker.setup), "the model to load")
    return takes_turns


def _load_weights(run: Run, begin: Beginning, exports_initial: bool) -> None:
    """Give the trainer the state that the run begins with, and evaluate it where the run that wrote it could not.

    Args:
        exports_initial: write the weights before training as a model first.
    """
    args, say = run.args, run.tracking.console.say
    if exports_initial:
        if begin.begun_with is not None and run.trainer is not None:
            load_state(begin.begun_with)
            loaded = run.trainer.call(TrainWorker.load, begin.begun_with)
            wait(loaded, "the checkpoint that the run began with to load")
        run.export(-1)
    if run.trainer is not None and begin.previous:
        exact = wait(run.trainer.call(TrainWorker.load, begin.previous), "the checkpoint to load")
        say(f"resumed from {begin.previous}: {begin.start} of {derived(args.num_rollout)} rollouts are done")
        if not exact:
            say(
                "note: on a GPU the run goes on like the unbroken one but for rounding; bit for bit if both were started with "
                "--deterministic-mode"
            )
    elif run.trainer is not None and args.load:
        say(start_in_words(args))
    if begin.previous and (again := begin.to_make_up_for(run.periods)) is not None:
        run.evaluate(again)
        take_over_best(args, run.early_stopping, begin.previous)


def _work(run: Run, begin: Beginning) -> None:
    """Run what is left to do, and export what comes out."""
    total, say, early = derived(run.args.num_rollout), run.tracking.console.say, run.early_stopping
    stopped_before = early is not None and early.stopped and total > 0
    over = begin.start >= total or stopped_before
    if begin.previous and not over:
        run.export_with_checkpoint(begin.start - 1)  # before which it may have been killed
    if early and stopped_before:
        say(f"{early.in_words()}; nothing is left to do")
    else:
        collect_again()
        with run.requests:
            train(run, begin.start, total, run.ahead)
        run.requests.raise_if_ended()
        if early and early.stopped:
            say(early.in_words())
    if over:
        run.export_at_end(begin.start - 1)
    if run.trainer is not None:
        wait(run.trainer.call(TrainWorker.finish), "the profiler")


def _with_free_run_dir(plan: Plan) -> Plan:
    """A run directory that is called by the time of start gets a number, if another run started in the same second."""
    if not plan.resolved.run_dir_by_time:
        return plan
    first = folder = Path(derived(plan.args.run_dir))
    with writing("The folder of the run, --run-dir,", first):
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


def _keep_what_reads_rows(args: RunArguments, details: Path) -> None:
    """Write the tokenizer and, of a model that reads images, its image processor: what the rows of the run became tokens by."""
    tokenizer = load_tokenizer(args.hf_checkpoint)
    processor = None if args.text_only else processor_of(args)
    with writing("What reads the rows, for --dump-details,", details):
        tokenizer.save_pretrained(details / "tokenizer")
        if processor is not None:
            processor.save(details / "processor")
