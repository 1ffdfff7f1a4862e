"""What a folder of a run has for whoever uses its model afterwards: its arguments, and its checkpoints. Called by `slime export` and
`slime eval`.

A run is meant by its run directory, by its folder of checkpoints (`--save`) or by one checkpoint in that. What has been moved since
is looked for where it would be then: paths in the arguments are those of the time of the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slime_core.arguments import RunArguments
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.rollout_paths import paths_of_rollouts
from slime_core.data.checkpoint_folders import is_of_a_run
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.run.checkpoints import all_checkpoints, find_checkpoint, started_in, stored_arguments
from slime_core.secrets import MASK
from slime_core.yaml_text import from_yaml

CONFIG = "config.yaml"


@dataclass(frozen=True)
class StoredRun:
    """A run on disk.

    Attributes:
        folder: that was named.
        run_dir: with `config.yaml`; None where a folder of checkpoints was named that has none.
        arguments: of the run, as its `config.yaml` or its newest checkpoint has them.
        checkpoints: the oldest first; the one that was named alone.
    """

    folder: Path
    run_dir: Path | None
    arguments: Mapping[str, Any]
    checkpoints: list[Path]

    def exported(self) -> list[Path]:
        """The models that `--save-hf` wrote and that are there still, the oldest first."""
        named = self.arguments.get("save_hf")
        if not isinstance(named, str):
            return []
        found = [path for path in paths_of_rollouts(named, self.moved) if (path / "config.json").is_file()]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def moved(self, path: str) -> Path:
        """Where a path of the run is now: in the run directory, there, or as far from the run directory as it was."""
        return _moved(path, self.arguments, self.run_dir)


def find_run(folder: Path) -> StoredRun | None:
    """The run that a folder is of; None if it is of none."""
    if is_of_a_run(folder):
        return StoredRun(folder, None, stored_arguments(folder), [folder])
    config = _arguments_of_config(folder / CONFIG)
    if config is not None:
        save = config.get("save")
        own = all_checkpoints(folder)
        elsewhere = all_checkpoints(_moved(save, config, folder)) if isinstance(save, str) and not own else []
        return StoredRun(folder, folder, config, own or elsewhere)
    if found := all_checkpoints(folder):
        return StoredRun(folder, None, stored_arguments(found[-1]), found)
    return None


def require_checkpoint(folder: Path, step: int | None) -> Path:
    """The checkpoint of a run that a folder and `--ckpt-step` mean: the folder itself, the newest one, or iter_N.

    Raises:
        CheckpointError: there is none; says what is there instead.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} is not there. Give a run directory, a folder of --save, or an iter_N in it.")
    if (folder / "trainer").is_dir() and not is_of_a_run(folder):
        raise CheckpointError(
            f"{folder} was not written to its end: it has no manifest.json. Take another checkpoint beside it."
        )
    run = find_run(folder)
    where = run.checkpoints[-1].parent if run and run.checkpoints and run.checkpoints != [folder] else folder
    found = find_checkpoint(where, step)
    if found is not None:
        return found
    if run is None:
        raise CheckpointError(
            f"{folder} has no checkpoint of a run, and no {CONFIG} of one. Give a run directory, a folder of --save, or an iter_N in it."
        )
    exported = run.exported()
    instead = f" Its exported model is {exported[-1]}." if exported else ""
    raise CheckpointError(
        f"The run in {folder} has no checkpoint: {_why_none(run)}{instead or ' Train with --save DIR to keep some.'}"
    )


def arguments_of(checkpoint: Path, namespace: Namespace, **changes: Any) -> RunArguments:
    """The arguments of the run that wrote a checkpoint.

    What is not installed any more is left out, and code of model folders is not executed, whatever the run allowed.

    Args:
        namespace: all options that there are.
        changes: values in place of stored ones.

    Raises:
        CheckpointError: they do not make a run.
    """
    stored, origin = stored_arguments(checkpoint), started_in(checkpoint)
    values = {name: value for name, value in stored.items() if name in namespace.options and MASK not in str(value)}
    for name in ("hf_checkpoint", "ref_load", "load"):
        if values.get(name) and not Path(values[name]).exists() and (origin / values[name]).exists():
            values[name] = str(origin / values[name])
    try:
        return namespace.model(**{**values, "trust_remote_code": False, **changes})
    except ValueError as error:  # pydantic's among them
        raise CheckpointError(f"The arguments of {checkpoint} are not those of a run: {error}") from error


def given_arguments(arguments: Mapping[str, Any], namespace: Namespace) -> dict[str, Any]:
    """Those of the arguments of a run that are options here, no secrets and not at their defaults."""
    known = {name: value for name, value in arguments.items() if name in namespace.options and MASK not in str(value)}
    return {name: value for name, value in known.items() if value != namespace.options[name].default}


def _arguments_of_config(file: Path) -> dict[str, Any] | None:
    """The arguments in a `config.yaml`; None where there is no such file, or it is another program's."""
    try:
        found = from_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    except yaml.YAMLError as error:
        raise ArgumentError(f"{file} is damaged: {error}") from None
    arguments = found.get("arguments") if isinstance(found, dict) else None
    return arguments if isinstance(arguments, dict) else None


def _moved(path: str, arguments: Mapping[str, Any], run_dir: Path | None) -> Path:
    then = arguments.get("run_dir")
    if run_dir is None or not isinstance(then, str):
        return Path(path)
    beside = Path(os.path.normpath(run_dir / os.path.relpath(path, then)))
    inside = Path(path).is_relative_to(then)  # of the run that is meant, also where that is a copy
    return beside if (inside and beside.exists()) or not Path(path).exists() else Path(path)


def _why_none(run: StoredRun) -> str:
    save = run.arguments.get("save")
    return f"--save was {save}, where none is." if save else "it had no --save."
