"""`GlobalDataSource`: the rows of `--prompt-data`, epoch after epoch, and the buffer of unfinished groups.

The default of `--data-source-path`. All of its state is in `state_dict`, so a run that continues from a checkpoint
gets the groups that the unbroken run would have got.
"""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from slime_core.data.chat import sample_from_row
from slime_core.data.rows import open_rows
from slime_core.errors import ArgumentError, CheckpointError, DataError, PluginError
from slime_core.sample import Group, Sample


def pop_first(args: Any, rollout_id: int | None, buffer: list[Group], num_samples: int) -> list[Group]:
    """The default of `--buffer-filter-path`: the groups that have waited longest."""
    groups = buffer[:num_samples]
    del buffer[:num_samples]
    return groups


class GlobalDataSource:
    """Groups of `--n-samples-per-prompt` samples from `--prompt-data`.

    With `--rollout-shuffle`, the order of epoch e is a shuffle seeded with `--rollout-seed` + e. Reading needs 8
    bytes a row for that order; the rows stay on disk.

    Args:
        args: reads `prompt_data`, `input_key`, `label_key`, `tool_key`, `metadata_key`, `rollout_shuffle`,
            `rollout_seed`, `n_samples_per_prompt` and `malformed_row`.
        buffer_pop: how groups leave the buffer.

    Attributes:
        counts: what was left out so far, for the metrics: "malformed_rows".
        buffer: groups that were given back unfinished.
    """

    def __init__(self, args: Any, buffer_pop: Callable[..., list[Group]] = pop_first) -> None:
        if not args.prompt_data:
            raise ArgumentError("There is no data to train on; name a file with --prompt-data.")
        self.args = args
        self.buffer: list[Group] = []
        self.counts = {"malformed_rows": 0}
        self._rows = open_rows(args.prompt_data)
        self._buffer_pop = buffer_pop
        self._epoch = 0
        self._offset = 0  # rows of this epoch that were read
        self._next_group = 0
        self._next_sample = 0
        self._order: Sequence[int] | None = None  # of this epoch; made when it is first needed

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> dict[str, str]:
        """{file: digest of its content}."""
        return self._rows.fingerprint()

    def get_samples(self, num_samples: int) -> list[Group]:
        """The next `num_samples` groups: from the buffer first, then from the files.

        Raises:
            DataError: a row is malformed and `--malformed-row` is "error", or every row of an epoch is.
        """
        groups = self._from_buffer(num_samples)
        while len(groups) < num_samples:
            groups.append(self._new_group())
        return groups

    def add_samples(self, groups: list[Group]) -> None:
        """Put unfinished groups at the end of the buffer."""
        for group in groups:
            if not (isinstance(group, list) and group and all(isinstance(sample, Sample) for sample in group)):
                raise PluginError(
                    f"add_samples was given {type(group).__name__} where a group belongs; "
                    "expected a list of groups, each a list of at least one Sample."
                )
        self.buffer.extend(groups)

    def state_dict(self) -> dict[str, Any]:
        """Position, numbering, counts and buffer as plain JSON data."""
        return {
            "num_rows": len(self._rows),
            "epoch": self._epoch,
            "offset": self._offset,
            "next_group": self._next_group,
            "next_sample": self._next_sample,
            "counts": dict(self.counts),
            "buffer": [[sample.to_dict() for sample in group] for group in self.buffer],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            CheckpointError: the state was taken over another number of rows.
        """
        if state["num_rows"] != len(self._rows):
            raise CheckpointError(
                f"The checkpoint's data had {state['num_rows']} rows, --prompt-data has {len(self._rows)}. "
                "Continue with the same files and slices, or start a new run from the exported weights."
            )
        self._epoch = state["epoch"]
        self._offset = state["offset"]
        self._next_group = state["next_group"]
        self._next_sample = state["next_sample"]
        self.counts = dict(state["counts"])
        self.buffer = [[Sample.from_dict(sample) for sample in group] for group in state["buffer"]]
        self._order = None

    def _from_buffer(self, num_samples: int) -> list[Group]:
        if not self.buffer or num_samples < 1:
            return []
        groups = list(self._buffer_pop(self.args, None, self.buffer, num_samples))
        if len(groups) > num_samples:
            raise PluginError(
                f"The function of --buffer-filter-path returned {len(groups)} groups; expected at most {num_samples}."
            )
        return groups

    def _new_group(self) -> Group:
        first = self._next_good_sample()
        group = [first, *(copy.deepcopy(first) for _ in range(self.args.n_samples_per_prompt - 1))]
        for sample in group:
            sample.group_index, sample.index = self._next_group, self._next_sample
            self._next_sample += 1
        self._next_group += 1
        return group

    def _next_good_sample(self) -> Sample:
        problem = ""
        for _ in range(len(self._rows)):
            index = self._next_row()
            try:
                return sample_from_row(self.args, self._rows[index], self._rows.where(index))
            except DataError as error:
                if self.args.malformed_row == "error":
                    raise DataError(f"{error} (--malformed-row skip leaves such rows out.)") from None
                self.counts["malformed_rows"] += 1
                problem = str(error)
        raise DataError(f"None of the {len(self._rows)} rows of --prompt-data can be used. The last one: {problem}")

    def _next_row(self) -> int:
        if self._offset == len(self._rows):
            self._epoch, self._offset, self._order = self._epoch + 1, 0, None
        if self._order is None:
            self._order = self._epoch_order()
        self._offset += 1
        return self._order[self._offset - 1]

    def _epoch_order(self) -> Sequence[int]:
        if not self.args.rollout_shuffle:
            return range(len(self._rows))
        order = array("Q", range(len(self._rows)))
        random.Random(self.args.rollout_seed + self._epoch).shuffle(order)
        return order
