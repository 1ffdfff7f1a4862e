"""`BoundedLog`: rows about rollouts, in a file that keeps within a limit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slime_core.whole_file import write_whole

ROLLOUT = re.compile(rb'\{"rollout": ?(\d+)[,}]')
"""What the row of a rollout begins with."""


class BoundedLog:
    """A file with one JSON object a line, each about a rollout ("rollout"). Of every `stride` rollouts it holds one. When it has
    grown beyond the limit, the stride is doubled, and the rollouts in between are dropped: what is left is spread evenly over the
    run, however long that goes on.

    Args:
        path: the file. The first line of one that has been thinned tells the stride.
        limit: bytes. A single rollout may go beyond it.

    Attributes:
        stride: rollouts that it divides are wanted.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self.stride = int(next(read_rows(path), {}).get("stride", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = path.stat().st_size if path.exists() else 0

    def wants(self, rollout_id: int) -> bool:
        """Whether this rollout is to be recorded."""
        return rollout_id % self.stride == 0

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add the rows of one rollout."""
        content = b"".join(_line(row) for row in rows)
        with self._path.open("ab", buffering=0) as file:
            file.write(content)
        self._size += len(content)
        while self._size > self._limit and self._thin():
            pass

    def _thin(self) -> bool:
        """Drop every second rollout; False if only one is left."""
        kept = [row for row in read_rows(self._path) if "rollout" in row]
        if len({row["rollout"] for row in kept}) < 2:
            return False
        self.stride *= 2
        self._write(row for row in kept if row["rollout"] % self.stride == 0)
        return True

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        head = [{"stride": self.stride}] if self.stride > 1 else []
        content = b"".join(_line(row) for row in [*head, *rows])
        write_whole(self._path, content)
        self._size = len(content)


def drop_from(path: Path, first: int) -> None:
    """Drop what a log has of this rollout and later ones, which a run that goes on from a checkpoint repeats, and what is no row."""
    rows = [row for row in read_rows(path) if "stride" in row or row["rollout"] < first]
    write_whole(path, b"".join(map(_line, rows)))


def read_rows(path: Path, only: frozenset[int] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a log, also while it is being written. Lines that are none are left out, such as one that a kill cut short.

    Args:
        only: of these rollouts; None: of all.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            begins = ROLLOUT.match(line)
            if only is not None and begins and int(begins[1]) not in only:
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and (isinstance(row.get("rollout"), int) or isinstance(row.get("stride"), int)):
                yield row


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
