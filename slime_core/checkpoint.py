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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slime_core.errors import CheckpointError

_PREFIX = "iter_"
_LATEST = "latest_checkpointed_iteration.txt"


def save(
    folder: Path, rollout_id: int, write: Callable[[Path], None], state: dict[str, Any], keep: int | None = None
) -> Path:
    """Write the checkpoint after `rollout_id` and return its folder.

    Args:
        write: writes the trainer's files into the folder that it is given.
        state: plain JSON data.
        keep: delete all but so many newest checkpoints, after this one is complete.

    Raises:
        CheckpointError: it could not be written, for example because the disk is full. Older ones are untouched.
    """
    final = folder / f"{_PREFIX}{rollout_id:07d}"
    hidden = folder / f".saving_{_PREFIX}{rollout_id:07d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".saving_{_PREFIX}*"):
            shutil.rmtree(leftover)
        (hidden / "trainer").mkdir(parents=True)
        write(hidden / "trainer")
        (hidden / "state.json").write_text(json.dumps(state), encoding="utf-8")
        files = sorted(p for p in hidden.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(hidden)): _describe(p) for p in files}
        (hidden / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files, hidden / "manifest.json", hidden / "trainer", hidden):
            _flush(path)
        if final.exists():  # a resumed run writes the same state again
            shutil.rmtree(final)
        os.rename(hidden, final)
        _write_latest(folder, rollout_id)
        _flush(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(hidden, ignore_errors=True)
        previous = find_latest(folder)
        raise CheckpointError(
            f"The checkpoint after rollout {rollout_id} could not be written to {folder}: {error}. "
            + (f"The previous one, {previous}, is intact. " if previous else "There is no earlier one. ")
            + "Free some space (or use --save-total-limit) and start the same command again with --load."
        ) from error
    if keep is not None:
        for old in _all(folder)[:-keep]:
            shutil.rmtree(old)
    return final


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
