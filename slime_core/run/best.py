"""The checkpoint of the best evaluation, which `--early-stopping-keep best` keeps: a file beside the checkpoints names it.

DIR/best_checkpointed_iteration.txt     the rollout after which the best evaluation was made
"""

from __future__ import annotations

import shutil
from pathlib import Path

from slime_core.arguments import RunArguments
from slime_core.data.checkpoint_folders import PREFIX, is_of_a_run
from slime_core.errors import CheckpointError
from slime_core.output import writing
from slime_core.run.early_stopping import EarlyStopping
from slime_core.whole_file import write_whole

BEST = "best_checkpointed_iteration.txt"


def keeps_best(args: RunArguments) -> bool:
    """Whether a run ends with the weights of its best evaluation."""
    return bool(args.early_stopping_patience) and args.early_stopping_keep == "best"


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that is named the best one in a folder of checkpoints; None where none is."""
    try:
        found = folder / f"{PREFIX}{int((folder / BEST).read_text(encoding='utf-8')):07d}"
    except (OSError, ValueError):
        return None
    return found if is_of_a_run(found) else None


def name_best(folder: Path, rollout_id: int) -> None:
    """Let a folder of checkpoints name the one after this rollout the best."""
    write_whole(folder / BEST, f"{rollout_id}\n")


def require_begun_with(args: RunArguments, checkpoint: Path) -> None:
    """See to it that the checkpoint is there which a run began with that counts its rollouts anew: the evaluation before training may be
    the best one.

    Raises:
        CheckpointError: it is gone.
    """
    if not is_of_a_run(checkpoint):
        raise CheckpointError(
            f"--early-stopping-keep best: the best {args.early_stopping_metric} was that before training, and the checkpoint that the run "
            f"began with, {checkpoint}, is gone. Restore it, or go on with --early-stopping-keep last --on-resume-change "
            "early-stopping-keep=allow."
        )


def take_over_best(args: RunArguments, early: EarlyStopping | None, loaded: Path) -> None:
    """In a run that goes on from a checkpoint, see to it that the best checkpoint until then is in `--save`, and named there.

    Args:
        loaded: the checkpoint that it goes on from, perhaps in another folder.

    Raises:
        CheckpointError: the best one is gone.
        OutputError: it cannot be copied.
    """
    if early is None or not keeps_best(args) or not args.save or early.best_rollout is None or early.best_rollout < 0:
        return
    save, name = Path(args.save), f"{PREFIX}{early.best_rollout:07d}"
    if not is_of_a_run(save / name):
        there = loaded.parent / name
        if not is_of_a_run(there):
            raise CheckpointError(
                f"--early-stopping-keep best: {early.best_in_words()}, and its checkpoint {there} is gone. Restore it, or go on "
                "with --early-stopping-keep last --on-resume-change early-stopping-keep=allow."
            )
        hidden = save / f".saving_{name}"
        shutil.rmtree(hidden, ignore_errors=True)
        with writing(f"The copy of the best checkpoint, {there}, for --save", save / name):
            shutil.copytree(there, hidden)
            hidden.rename(save / name)
    with writing("The number of the best checkpoint in --save", save / BEST):
        name_best(save, early.best_rollout)
