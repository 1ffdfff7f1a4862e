"""The newest weights on disk, as Hugging Face checkpoints: what a server that is started again loads, and the transport
"disk". The weight sender writes them, the fleet and the servers read them; all of them share the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_PREFIX = "version_"
_START_COUNTS = "server_starts.json"
_UPDATING = ".updating"
_counting = threading.Lock()
OWN = "slime_weights"
"""The folder of all versions, in one that is shared with other things: all that is in it is removed when a run begins."""
KEPT = 2
"""How many versions are kept: a server may still be loading the one before the newest."""


class Snapshot:
    """One version of the weights that is being written. Nobody sees it before it is complete.

    Args:
        folder: the folder of all versions.
        checkpoint: the run's Hugging Face checkpoint, whose configuration and tokenizer are copied.
        version: the number of the version.
    """

    def __init__(self, folder: Path, checkpoint: str, version: int) -> None:
        self._folder, self._version = folder, version
        self._hidden = folder / f".{_PREFIX}{version:07d}"
        shutil.rmtree(self._hidden, ignore_errors=True)
        self._hidden.mkdir(parents=True)
        for file in Path(checkpoint).iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(file, self._hidden / file.name)
        self._files: dict[str, str] = {}
        self._bytes = 0

    def add(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Write some of the weights, given under their Hugging Face names."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
        file = f"model-{len(set(self._files.values())) + 1:05d}.safetensors"
        save_file(tensors, self._hidden / file, metadata={"format": "pt"})
        self._files |= dict.fromkeys(tensors, file)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def publish(self) -> Path:
        """Make it the newest version, remove versions that nobody needs, and return its folder."""
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._files}
        (self._hidden / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        path = self._folder / f"{_PREFIX}{self._version:07d}"
        shutil.rmtree(path, ignore_errors=True)
        os.replace(self._hidden, path)
        for old in _versions(self._folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def discard(self) -> None:
        """Remove what was written but not published."""
        shutil.rmtree(self._hidden, ignore_errors=True)


def newest(folder: Path) -> tuple[Path, int] | None:
    """Return the folder and the number of the newest version, if there is one."""
    found = _versions(folder)
    return (found[-1], int(found[-1].name.removeprefix(_PREFIX))) if found else None


def clear(folder: Path) -> None:
    """Remove the versions that an earlier run left."""
    for path in [*_versions(folder), *folder.glob(f".{_PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)
    for name in (_START_COUNTS, _UPDATING):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def mark_updating(folder: Path) -> Iterator[None]:
    """Return a context in which `is_being_updated` is true: servers are paused and answer no health check."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _UPDATING).touch()
    try:
        yield
    finally:
        (folder / _UPDATING).unlink(missing_ok=True)


def is_being_updated(folder: Path) -> bool:
    """Return whether servers are given new weights at this moment."""
    return (folder / _UPDATING).exists()


def count_start(folder: Path, url: str) -> None:
    """Note that a server was started, and so is in none of the process groups that it was in before."""
    folder.mkdir(parents=True, exist_ok=True)
    with _counting:  # servers start at the same time, in threads of one process
        counts = start_counts(folder)
        counts[url] = counts.get(url, 0) + 1
        hidden = folder / f".{_START_COUNTS}"
        hidden.write_text(json.dumps(counts), encoding="utf-8")
        os.replace(hidden, folder / _START_COUNTS)


def start_counts(folder: Path) -> dict[str, int]:
    """Return how often each server was started, by its URL."""
    try:
        found: dict[str, int] = json.loads((folder / _START_COUNTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _versions(folder: Path) -> list[Path]:
    """The folders of all versions, the newest last."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
