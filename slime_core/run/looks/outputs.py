"""Where a run writes: the folders can be made and written into, and hold nothing that would be lost; and whether its weights are
kept at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from slime_core.another_machine import is_for_another_machine
from slime_core.arguments.rollout_paths import path_of_rollout
from slime_core.errors import ArgumentError
from slime_core.run import checkpoints
from slime_core.run.looks.look import Look, Scene


def folders(scene: Scene) -> None:
    """`--run-dir`, `--save`, `--save-hf`, `--dump-details`, `--tensorboard-dir` and those of single dumps are folders, or can become such, and can be written into."""
    args = scene.args
    trains = not args.debug_rollout_only
    given = {"--run-dir": args.run_dir, "--save": args.save if trains else None, "--dump-details": args.dump_details}
    if args.use_pytorch_profiler or getattr(args, "use_tensorboard", False):
        given["--tensorboard-dir"] = args.tensorboard_dir
    if trains and args.save_hf:
        given["--save-hf"] = str(path_of_rollout(args.save_hf, 0))
    dumps = {
        "--save-debug-rollout-data": args.save_debug_rollout_data,
        "--save-debug-train-data": args.save_debug_train_data,
    }
    for option, file in dumps.items():
        if file and not args.dump_details:
            given[option] = str(path_of_rollout(file, 0).parent)
    tried: set[Path] = set()
    for option, folder in given.items():
        if folder and is_for_another_machine() and scene.is_elsewhere(folder):
            scene.not_seen(f"{option} {folder} is not on this machine: whether it can be written was not looked at.")
        elif folder:
            with scene.noting():
                require_writable(option, Path(folder), tried)


def earlier_checkpoints(scene: Scene) -> None:
    """`--load` is there, and `--save` holds no checkpoint that this run would overwrite."""
    args = scene.args
    if args.save and not args.debug_rollout_only:
        with scene.noting():
            checkpoints.require_own(Path(args.save))
    checkpoints.checkpoint_to_load(args)


def kept_weights(scene: Scene) -> None:
    """Something keeps what is trained."""
    args = scene.args
    if not (
        args.save or args.save_hf or args.debug_rollout_only or args.load_debug_rollout_data or args.num_rollout == 0
    ):
        scene.remark("Neither --save nor --save-hf is given: the trained weights are gone when the run ends.")


def require_writable(option: str, folder: Path, tried: set[Path]) -> None:
    """Check that a folder can be made, and written into.

    Args:
        tried: folders in which something was made and removed again.

    Raises:
        ArgumentError: it cannot.
    """
    advice = f"Choose another folder for {option}."
    there = folder
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if not there.is_dir():
            what = f"{there} is a file" if there.exists() else f"{there} is a link to nothing"
            raise ArgumentError(f"{option} {folder} cannot be made: {what}, no folder. {advice}")
        if there.resolve() not in tried:
            tried.add(there.resolve())
            os.rmdir(tempfile.mkdtemp(prefix=".slime-check-", dir=there))
    except OSError as error:
        raise ArgumentError(
            f"{option} {folder} cannot be written: {there}: {error.strerror or error}. {advice}"
        ) from None


LOOKS = (
    Look(
        "folders",
        "the folders of --run-dir, --save, --save-hf, --tensorboard-dir and of dumps, in which a folder is made and removed",
        folders,
    ),
    Look("earlier checkpoints", "what --load and --save hold", earlier_checkpoints),
    Look("kept weights", "nothing", kept_weights),
)
