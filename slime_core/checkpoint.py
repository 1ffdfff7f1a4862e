"""Checkpoints on disk: complete or not there at all.

    DIR/iter_0000019/            the state after rollout 19
        state.json               rollout id, data source, early stopping, arguments, data files, plugins
        trainer/                 what the train backend wrote
        manifest.json            size and digest of every file above
    DIR/latest_checkpointed_iteration.txt

A checkpoint is written into a hidden folder, flushed to disk and then renamed, so a folder that is called `iter_…` is
complete. On loading, every file is compared with the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from slime_core.errors import CheckpointError

_PREFIX = "iter_"
_LATEST = "latest_checkpointed_iteration.txt"


class Saving:
    """A checkpoint that is being written: made by the driver, filled by the training ranks, finished by the driver.

        with Saving(folder, rollout_id) as saving:
            …                          # every rank writes into saving.trainer
            path = saving.finish(state)

    Leaving the block with an `OSError` or `RuntimeError` (torch reports a full disk so) removes what was written and
    raises a `CheckpointError`; older checkpoints are untouched. Leaving it without `finish` keeps it for a later block.
    """

    def __init__(self, folder: Path, rollout_id: int) -> None:
        self.rollout_id = rollout_id
        self._folder = folder
        self._hidden = folder / f".saving_{_PREFIX}{rollout_id:07d}"
        self._begun = False

    @property
    def trainer(self) -> Path:
        """Where the ranks write."""
        return self._hidden / "trainer"

    def __enter__(self) -> Saving:
        if not self._begun:
            self._begun = True
            try:
                self._begin()
            except OSError as error:
                self.__exit__(type(error), error, None)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (OSError, RuntimeError)):
            return
        shutil.rmtree(self._hidden, ignore_errors=True)
        previous = find_latest(self._folder)
        raise CheckpointError(
            f"The checkpoint after rollout {self.rollout_id} could not be written to {self._folder}: {error}. "
            + (f"The previous one, {previous}, is intact. " if previous else "There is no earlier one. ")
            + "Free some space (or use --save-total-limit) and start the same command again with --load."
        ) from error

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(f".saving_{_PREFIX}*"):
            shutil.rmtree(leftover)
        self.trainer.mkdir(parents=True)

    def finish(self, state: dict[str, Any]) -> Path:
        """Make it a complete checkpoint, and return its folder.

        Args:
            state: plain JSON data.
        """
        final = self._folder / f"{_PREFIX}{self.rollout_id:07d}"
        (self._hidden / "state.json").write_text(json.dumps(state), encoding="utf-8")
        files = sorted(p for p in self._hidden.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(self._hidden)): _describe(p) for p in files}
        (self._hidden / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files, self._hidden / "manifest.json", self.trainer, self._hidden):
            _flush(path)
        if final.exists():  # a resumed run writes the same state again
            shutil.rmtree(final)
        os.rename(self._hidden, final)
        _write_latest(self._folder, self.rollout_id)
        _flush(self._folder)
        return final


def keep_newest(folder: Path, count: int) -> None:
    """Delete all complete checkpoints in `folder` but the `count` newest."""
    for old in _all(folder)[:-count]:
        shutil.rmtree(old)


def find_latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = _all(folder)
    return found[-1] if found else None


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Verify every file of a checkpoint against its manifest and return its state.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        damaged = [n for n, d in manifest.items() if not (checkpoint / n).is_file() or _describe(checkpoint / n) != d]
        if not damaged:
            return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        damaged = [str(error)]
    raise CheckpointError(
        f"The checkpoint {checkpoint} is damaged: {', '.join(damaged[:5])}. Remove that folder to go on from an earlier one."
    )


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit() and p.is_dir())


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "blake2b": hashlib.file_digest(file, "blake2b").hexdigest()[:32]}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_latest(folder: Path, rollout_id: int) -> None:
    temporary = folder / f".{_LATEST}"
    temporary.write_text(f"{rollout_id}\n", encoding="utf-8")
    os.replace(temporary, folder / _LATEST)
