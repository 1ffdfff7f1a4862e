"""`EpochReader`: one set of rows with random access, epoch after epoch. Called by `GlobalDataSource`."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from slime_core.data.rows import Rows
from slime_core.errors import CheckpointError


class EpochReader:
    """Hands out every row of a set once per epoch. Needs 8 bytes a row for the order; the rows stay on disk.

    Args:
        name: what messages call the set.
        seed: if given, the order of epoch e is a shuffle seeded with `seed` + e; otherwise it is that of the files.

    Attributes:
        epoch: how many epochs are over.
    """

    def __init__(self, rows: Rows, name: str, seed: int | None) -> None:
        self.name, self.epoch = name, 0
        self._rows, self._seed = rows, seed
        self._offset = 0  # rows of this epoch that were taken
        self._order: Sequence[int] | None = None  # of this epoch; made when it is first needed

    def __len__(self) -> int:
        return len(self._rows)

    def take(self) -> tuple[dict[str, Any], str]:
        """Return the next row, and its "file:row".

        Raises:
            DataError: it is no row; the next call goes on behind it.
        """
        if self._offset == len(self._rows):
            self.epoch, self._offset, self._order = self.epoch + 1, 0, None
        if self._order is None:
            self._order = self._epoch_order()
        self._offset += 1
        return self._row(self._order[self._offset - 1])

    def firsts(self) -> Iterator[Callable[[], tuple[dict[str, Any], str]]]:
        """Yield, for every file, what reads its first row, and its "file:row". Does not move on."""
        return (partial(self._row, index) for index in self._rows.firsts())

    def _row(self, index: int) -> tuple[dict[str, Any], str]:
        return self._rows[index], self._rows.where(index)

    def fingerprint(self) -> dict[str, str]:
        """Return {file: digest of its content}."""
        return self._rows.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain data."""
        return {"num_rows": len(self._rows), "epoch": self.epoch, "offset": self._offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            CheckpointError: it was taken over another number of rows.
        """
        if state["num_rows"] != len(self._rows):
            raise CheckpointError(
                f"The checkpoint's data had {state['num_rows']} rows, {self.name} has {len(self._rows)}. "
                "Continue with the same files and slices, or start a new run from the exported weights."
            )
        self.epoch, self._offset, self._order = state["epoch"], state["offset"], None

    def _epoch_order(self) -> Sequence[int]:
        if self._seed is None:
            return range(len(self._rows))
        order = array("Q", range(len(self._rows)))
        random.Random(self._seed + self.epoch).shuffle(order)
        return order
