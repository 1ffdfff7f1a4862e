"""`opened`: the Hugging Face checkpoint that somebody means who names a model, an export, a run or a checkpoint of one."""

from __future__ import annotations

import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from slime_core.data.checkpoint_folders import advice, is_of_a_run, recognise
from slime_core.errors import ArgumentError, Terminated
from slime_core.plugins import Plugins
from slime_core.run.stored_run import StoredRun, find_run

USUAL = ("model", "hf")
"""What exports are usually called in the directory of a run."""


@contextmanager
def opened(given: str, plugins: Plugins, trust_remote_code: bool = False) -> Iterator[Path]:
    """The folder of a model until the block ends: `given` itself, the newest export of a run, or the model of a checkpoint `iter_N`. What
    was not exported is exported into a temporary folder, and that is said on standard error.

    Args:
        trust_remote_code: code that the folder of the run's model brings may be executed.

    Raises:
        ArgumentError: there is no model; says what the folder is and what makes a model of it.
        SlimeError: the checkpoint cannot be exported.
    """
    path = Path(given).expanduser()
    if not path.exists():
        hub = " Nothing is downloaded: give the path of a folder on this machine." if given.count("/") == 1 else ""
        raise ArgumentError(f"There is no model {given}: no such folder.{hub}")
    if (path / "config.json").is_file():
        yield path
        return
    run = find_run(path) if path.is_dir() else None
    if export := _exported(path, run):
        yield export
    elif run is not None and run.checkpoints:
        with _exported_now(run.checkpoints[-1], plugins, trust_remote_code) as folder:
            yield folder
    else:
        raise _nothing(path, run)


def _exported(path: Path, run: StoredRun | None) -> Path | None:
    """The export that is meant: of a checkpoint the one of its rollout, else the newest."""
    usual = [path / name for name in USUAL if (path / name / "config.json").is_file()]
    found = [*(run.exported() if run is not None else ()), *usual]
    if is_of_a_run(path):
        found = [export for export in found if export in usual or _number(export) == _number(path)]
    return max(found, key=lambda export: (export / "config.json").stat().st_mtime, default=None)


def _number(folder: Path) -> int | None:
    """The rollout that a path names."""
    return next((int(found[-1]) for part in reversed(folder.parts[-2:]) if (found := re.findall(r"\d+", part))), None)


@contextmanager
def _exported_now(checkpoint: Path, plugins: Plugins, trust_remote_code: bool) -> Iterator[Path]:
    from slime_core.run.export import ExportOptions, export_checkpoint
    from slime_serve.terminal import remark

    with _removed_after_sigterm(), tempfile.TemporaryDirectory(prefix="slime-model-") as folder:
        target = Path(folder) / "model"
        remark(f"exporting {checkpoint} to {target}, until this ends; `slime export {checkpoint} FOLDER` keeps it")
        export_checkpoint(checkpoint, target, plugins, ExportOptions(trust_remote_code=trust_remote_code))
        yield target


@contextmanager
def _removed_after_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that nothing temporary is left."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _nothing(path: Path, run: StoredRun | None) -> ArgumentError:
    """What to tell of a folder that has no model."""
    if run is not None:
        return ArgumentError(
            f"{path} is the directory of a run that left neither an exported model nor a checkpoint. Train with --save-hf {path}/model, or "
            "with --save DIR."
        )
    if found := recognise(path):
        return ArgumentError(f"{path} leads to {found}; expected a Hugging Face checkpoint. {advice(found)}")
    return ArgumentError(
        f"{path} is no model: there is no config.json in it. Give a Hugging Face checkpoint, the directory of a run, or a checkpoint of one."
    )
