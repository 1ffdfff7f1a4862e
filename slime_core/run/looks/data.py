"""The tokenizer, the first row of every file that is trained on, and the first dump that takes the place of rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from slime_core.arguments.rollout_paths import path_of_rollout
from slime_core.contracts.data import ShowsFirstRows
from slime_core.data.checkpoint_folders import require_folder
from slime_core.data.samples import named_columns, require_columns
from slime_core.errors import DataError
from slime_core.rollout.debug_data import read_debug_data
from slime_core.run.checkpoints import checkpoint_to_load
from slime_core.run.looks.look import Look, Scene
from slime_core.sample import Sample


def tokenizer(scene: Scene) -> None:
    """The tokenizer of `--hf-checkpoint` can be loaded, if this machine can load any."""
    if importlib.util.find_spec("transformers") is None:
        scene.not_seen(
            "transformers is not installed here: neither tokenizer nor configuration of --hf-checkpoint were looked at, and no "
            "row was rendered."
        )
        return
    from slime_core.data.tokenizer import load_tokenizer

    if scene.is_elsewhere(scene.args.hf_checkpoint):
        scene.not_seen(
            f"--hf-checkpoint {scene.args.hf_checkpoint} is not on this machine: its tokenizer and its files were not looked at, and "
            f"no row was rendered.{'' if scene.card is None else ' Its shape is that of ' + scene.card + '.'}"
        )
        return
    if not Path(scene.args.hf_checkpoint).is_dir():
        require_folder(scene.args.hf_checkpoint, "--hf-checkpoint")
    scene.tokenizer = load_tokenizer(scene.args.hf_checkpoint)


def rows(scene: Scene) -> None:
    """The first row of every file has the columns that the options name, and one of the first those that a row may lack."""
    if scene.data_source is None or scene.args.num_rollout == 0:  # only evaluated: no row of it is read
        return
    if not isinstance(scene.data_source, ShowsFirstRows):
        scene.not_seen(
            f"No row was looked at: the {scene.components.rollouts.data_source.label} does not show any (it has no "
            "first_samples)."
        )
        return
    found: list[Sample] = []
    for first in scene.data_source.first_samples():
        if isinstance(first, Sample):
            first.index = first.group_index = len(found)
            found.append(first)
        elif scene.args.malformed_row == "skip":
            scene.remark(f"{first} Rows like that are left out (--malformed-row skip).")
        else:
            with scene.noting():
                raise DataError(f"{first} (--malformed-row skip leaves such rows out.)")
    scene.samples = found
    if found and (named := named_columns(scene.args)):
        if scene.args.data_source_path == "global":
            require_columns(named, scene.args.prompt_data or ())
        else:
            scene.not_seen(
                f"Whether rows have {', '.join(map(repr, named.values()))} was not looked at: they may lack that."
            )


def dump(scene: Scene) -> None:
    """Of a run that begins anew, the first file of `--load-debug-rollout-data` can be read and holds the samples of a rollout."""
    args = scene.args
    template = args.load_debug_rollout_data
    if not template or template in scene.to_come or args.num_rollout == 0 or checkpoint_to_load(args) is not None:
        return
    path = path_of_rollout(template, args.start_rollout_id or 0)
    if scene.is_elsewhere(str(path)):
        scene.not_seen(f"--load-debug-rollout-data {path} is not on this machine: it was not looked at.")
    else:
        read_debug_data(path, most=1)


LOOKS = (
    Look("tokenizer", "the tokenizer of --hf-checkpoint", tokenizer),
    Look("rows", "the first row of every file of --prompt-data", rows),
    Look("dump", "the first sample of the first file of --load-debug-rollout-data", dump),
)
