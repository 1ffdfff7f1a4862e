"""`model_folder`: which Hugging Face checkpoint somebody means who names a model, an export, a run or a checkpoint of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from slime_core.data.checkpoint_folders import advice, is_of_a_run, iterations, recognise
from slime_core.errors import ArgumentError

EXPORTS = ("model", "hf")
"""What exports are usually called in the directory of a run."""
ROLLOUT = "{rollout_id}"
"""What stands in `--save-hf` for the number of a rollout."""


def model_folder(given: str) -> Path:
    """The Hugging Face checkpoint that `given` leads to: itself; of the directory of a run its newest export; of a checkpoint
    `iter_N` the export of the same rollout.

    Raises:
        ArgumentError: there is none; says what the folder is and what makes a model of it.
    """
    path = Path(given).expanduser()
    if not path.exists():
        hub = " Nothing is downloaded: give the path of a folder on this machine." if given.count("/") == 1 else ""
        raise ArgumentError(f"There is no model {given}: no such folder.{hub}")
    if (path / "config.json").is_file():
        return path
    if path.is_dir() and is_of_a_run(path):
        return _export_of_checkpoint(path)
    if path.is_dir() and (exports := sorted(_exports(path), key=_age)):
        return exports[-1]
    checkpoints = iterations(path) if path.is_dir() else []
    if own := [folder for folder in checkpoints if is_of_a_run(folder)]:
        raise ArgumentError(f"{given} has checkpoints of a run and no export of a model. {_how_to_export(own[-1])}")
    if path.is_dir() and (path / "config.yaml").is_file():
        raise ArgumentError(
            f"{given} is the directory of a run that exported no model and kept no checkpoint in it. Run it with --save-hf {given}/model, "
            "or give the folder that was its --save or --save-hf."
        )
    if found := recognise(path):
        raise ArgumentError(f"{given} leads to {found}; expected a Hugging Face checkpoint. {advice(found)}")
    raise ArgumentError(
        f"{given} is no model: there is no config.json in it. Give a Hugging Face checkpoint, or the directory of a run that exported "
        "one (--save-hf)."
    )


def _export_of_checkpoint(checkpoint: Path) -> Path:
    """The export of the rollout that a checkpoint was saved after."""
    number = checkpoint.name.rpartition("_")[2]
    for export in (*(checkpoint / name for name in EXPORTS), *_exports(checkpoint.parent)):
        inside = export.parent == checkpoint
        if (export / "config.json").is_file() and (inside or _number(export) == int(number)):
            return export
    raise ArgumentError(
        f"{checkpoint} is a checkpoint of a run, and no export of it was found. {_how_to_export(checkpoint)}"
    )


def _how_to_export(checkpoint: Path) -> str:
    return f"Export it first: slime export {checkpoint} NEW-FOLDER."


def _exports(run: Path) -> Iterator[Path]:
    """All exports that a run has made: in its directory, and where its `--save-hf` says."""
    usual = [run / name for name in EXPORTS]
    for folder in [*usual, *(inner for name in usual for inner in sorted(name.glob("*")))]:
        if (folder / "config.json").is_file():
            yield folder
    parts = Path(_save_hf(run)).parts
    fixed = next((n for n, part in enumerate(parts) if ROLLOUT in part), len(parts))
    named = "/".join(parts[fixed:]).replace(ROLLOUT, "*")
    where = Path(*parts[:fixed])
    for folder in sorted(where.glob(named)) if named else [where]:
        if parts and (folder / "config.json").is_file():
            yield folder


def _save_hf(run: Path) -> str:
    """What `--save-hf` was in a run, "" where nothing tells."""
    try:
        config: Any = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    given = config.get("arguments", config) if isinstance(config, dict) else {}
    found = given.get("save_hf") if isinstance(given, dict) else None
    found = found.get("value") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""


def _number(folder: Path) -> int | None:
    """The rollout that the path of an export names."""
    return next((int(found[-1]) for part in reversed(folder.parts[-2:]) if (found := re.findall(r"\d+", part))), None)


def _age(folder: Path) -> float:
    return (folder / "config.json").stat().st_mtime
