"""Where a run begins: which checkpoint it goes on from, whether it is the run that wrote it, and what becomes of what an earlier attempt
left. Called by `slime_core.run.launch` before anything is loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.arguments.readers import in_effect
from slime_core.arguments.rollout_paths import path_of_rollout, rollouts_there
from slime_core.data.evaluation import evaluation_fingerprint
from slime_core.errors import CheckpointError
from slime_core.plugins.registry import fingerprint_differences
from slime_core.run import checkpoints
from slime_core.run.periods import Periods
from slime_core.run.plan import Plan
from slime_core.run.tracking import rollout_of
from slime_core.secrets import masked_data

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Attributes:
        start: the first rollout to run.
        identity: what every checkpoint stores about the run: arguments, files of data and of evaluation sets, plugins, and
            `begun_with`, the checkpoint that it began with where it counts its rollouts anew.
        previous: folder of the checkpoint that it goes on from; None in a new run.
        state: what that checkpoint stores, as far as this run takes it over; None in a new run.
        trains: whether any rollout is left to be trained.
        branches: what it repeats of an earlier attempt may have other numbers: newer checkpoints are to be set aside, or
            `--on-resume-change` allows a difference.
    """

    start: int
    identity: dict[str, Any]
    previous: Path | None = None
    state: dict[str, Any] | None = None
    trains: bool = True
    branches: bool = False

    @property
    def anew(self) -> bool:
        """Whether its rollouts are counted from here on, and nothing in the run directory is of them."""
        return self.state is None or bool(self.state["rollout_id"] + 1 != self.start)

    @property
    def begun_with(self) -> Path | None:
        """See `identity`."""
        return Path(self.identity["begun_with"]) if self.identity["begun_with"] else None

    def resume_after(self, run_dir: Path) -> int | None:
        """The last rollout of which the run directory keeps what it has; None where it keeps nothing. Who only looks at a checkpoint
        drops nothing."""
        if self.anew:
            return None
        return self.start - 1 if self.trains else max(self.start - 1, last_logged(run_dir))

    def to_make_up_for(self, periods: Periods) -> int | None:
        """The rollout after which an evaluation was due and failed."""
        due = self.state is not None and self.state.get("evaluation_due") and periods.args.num_rollout
        return self.start - 1 if due and periods.evaluates(self.start - 1) else None

    def stored(self, name: str) -> Any:
        """What the checkpoint has under a name; None where it has nothing."""
        return self.state.get(name) if self.state else None


def find_beginning(plan: Plan) -> Beginning:
    """Find where a run begins: at a checkpoint, or anew.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is that of another run.
    """
    args = plan.args
    identity: dict[str, Any] = {
        "arguments": plan.resolved.result_arguments(),
        "data": plan.data_source.fingerprint(),
        "evaluation_data": evaluation_fingerprint(args),
        "plugins": plan.plugins.fingerprint(),
    }
    previous = checkpoints.checkpoint_to_load(args)
    state = checkpoints.require_state(checkpoints.load_state(previous)) if previous else None
    branches = previous is not None and bool(checkpoints.newer_than(args.save, previous))
    if previous and state and args.num_rollout:
        branches |= _differs(plan, previous, state, identity)
    start, state = _first_rollout(args, previous, state)
    identity["begun_with"] = state.get("begun_with") if state else None
    trains = start < derived(args.num_rollout) and not args.debug_rollout_only
    return Beginning(start, identity, previous, state, trains, branches)


def _first_rollout(
    args: RunArguments, checkpoint: Path | None, state: dict[str, Any] | None
) -> tuple[int, dict[str, Any] | None]:
    """The first rollout of a run, and what it takes over of the state of a checkpoint."""
    if checkpoint is None or state is None:
        return args.start_rollout_id or 0, None
    follows = state["rollout_id"] + 1
    if args.start_rollout_id in (None, follows):
        return follows, state
    return args.start_rollout_id, _counted_anew(args, checkpoint, state)


def _counted_anew(args: RunArguments, checkpoint: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint for a run that counts its rollouts from `--start-rollout-id`: it has the models and their
    optimizers, begins with the data at its beginning, and knows nothing of rollouts that were waiting, nor which of the earlier
    versions the engine had. `begun_with` is this checkpoint, for the checkpoints of the run too.

    Raises:
        CheckpointError: its checkpoints would stand among those that count otherwise.
    """
    if args.save and Path(args.save).resolve() == checkpoint.parent.resolve():
        raise CheckpointError(
            f"--start-rollout-id is {args.start_rollout_id}, but {checkpoint} goes on with rollout {state['rollout_id'] + 1}, and the new "
            "checkpoints would stand among those that are counted otherwise. Leave --start-rollout-id out to go on, or give --save "
            "another folder to count anew."
        )
    of_the_other_count = ("data_source", "prefetched", "prefetched_version", "engine_version", "early_stopping")
    begun_with = str(checkpoint.absolute())
    return {**state, **dict.fromkeys(of_the_other_count), "evaluation_due": False, "begun_with": begun_with}


def finish_removing(args: RunArguments, previous: Path) -> None:
    """Do what the run that goes on from its newest checkpoint would have done after writing it, had it not been killed: name it the
    newest, and remove earlier ones."""
    if not args.save or previous != checkpoints.find_latest(Path(args.save)):
        return
    checkpoints.write_latest(previous)
    checkpoints.clear_parts(previous.parent)
    if args.save_total_limit is not None:
        checkpoints.keep_newest(previous.parent, args.save_total_limit)


def _differs(plan: Plan, checkpoint: Path, state: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Compare the run that wrote a checkpoint with this one. Returns whether options or rows differ, which is told of.

    Raises:
        CheckpointError: they differ in something that can change the result, and `--on-resume-change` does not allow it.
    """
    permissions = set(plan.args.on_resume_change)
    selected = [component for _, component in plan.components.roles()]
    compared = in_effect(plan.resolved, selected, plan.plugins) & set(identity["arguments"])
    defaults = {name: plan.resolved.namespace.options[name].default for name in compared}
    options = {
        name: f"--{name.replace('_', '-')} was {before!r} and is {after!r}"
        for name in sorted(compared)  # one that did not exist then had its default
        if (before := masked_data(state["arguments"].get(name, defaults[name])))
        != (after := identity["arguments"][name])
    }
    data = _changes_of_data(state["data"], identity["data"], "data file")
    forbidden = {name: text for name, text in options.items() if f"{name}=allow" not in permissions}
    refused = [*forbidden.values(), *data]
    for difference in fingerprint_differences(state["plugins"], identity["plugins"]):
        logger.warning("plugins differ between the checkpoint (there) and this run (here): %s", difference)
    if refused and "warn" not in permissions:
        advice = "Restore them, or go on all the same with --on-resume-change warn"
        if not data:
            advice += " or " + " ".join(f"{name.replace('_', '-')}=allow" for name in forbidden)
        raise CheckpointError(f"This is not the run that {checkpoint} was saved by: {'; '.join(refused)}. {advice}.")
    if options or data:
        logger.warning(
            "This is not the run that %s was saved by: %s.", checkpoint, "; ".join([*options.values(), *data])
        )
    evaluated = state.get("evaluation_data")  # which checkpoints of older versions lack
    changes = []
    if isinstance(evaluated, dict) and (
        changes := _changes_of_data(evaluated, identity["evaluation_data"], "evaluation file")
    ):
        logger.warning(
            "Evaluations measure something else than before %s, and a best one of early stopping is of other rows: %s.",
            checkpoint,
            "; ".join(changes),
        )
    return bool(options or data or changes)


def _changes_of_data(then: dict[str, Any], now: dict[str, Any], what: str) -> list[str]:
    """What differs between the data of two runs, one phrase for each file, which is called `what`."""
    found = []
    for name in sorted(set(then) | set(now)):
        if name not in now:
            found.append(f"the {what} {name} is gone")
        elif name not in then:
            found.append(f"the {what} {name} is new")
        elif then[name] != now[name]:
            found.append(f"the {what} {name} has changed")
    return found


_OF_A_RUN = ("config.yaml", "eval", "record", "metrics.jsonl")
"""What every run writes into its run directory. The metrics are moved last, so that a kill in between is made up for."""


def set_earlier_run_aside(run_dir: Path) -> Path | None:
    """Where a run begins in the folder of an earlier one that has ended: move what that one wrote into `earlier-N`, the first that
    is free, and return this folder. None if there are no metrics of an earlier run."""
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists() or not metrics.stat().st_size:
        return None
    return checkpoints.move_aside(run_dir, [run_dir / name for name in _OF_A_RUN if (run_dir / name).exists()])


def set_dumps_aside(args: RunArguments, sampled: int, trained: int) -> list[Path]:
    """Move the dumps of `--save-debug-rollout-data`, `--save-debug-train-data` and `--dump-details` that the run makes anew into
    `earlier-N` beside them, and return these folders. A folder from which it reads stays as it is.

    Args:
        sampled, trained: the first rollout of which the run makes samples, and the first on which it trains. A checkpoint may have the
            samples of the rollout that follows it.
    """
    source = args.load_debug_rollout_data
    reads = source and path_of_rollout(source, trained).resolve()
    later: dict[Path, list[Path]] = {}
    for pattern, start in ((args.save_debug_rollout_data, sampled), (args.save_debug_train_data, trained)):
        for rollout_id, path in rollouts_there(pattern or ""):
            if rollout_id >= start and not (reads and reads.is_relative_to(path.parent.resolve())):
                later.setdefault(path.parent, []).append(path)
    return [checkpoints.move_aside(folder, sorted(paths)) for folder, paths in later.items()]


def last_logged(run_dir: Path) -> int:
    """The last rollout of which a run directory has metrics; -1 if there is none."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return max((found for line in lines if (found := rollout_of(line)) is not None), default=-1)


def how_to_resume(args: RunArguments) -> str:
    """What to do after the run lost a worker."""
    if args.save and (newest := checkpoints.find_latest(Path(args.save))):
        return f"To go on from {newest.name}, start the same command again with --load {args.save}."
    return "There is no checkpoint to go on from" + (
        "." if args.save else "; --save DIR --save-interval N writes some."
    )
