"""The data sources: groups of samples from the rows of `--prompt-data`, and the buffer of unfinished groups.

`GlobalDataSource`, the default of `--data-source-path`, reads files with random access, epoch after epoch;
`StreamingDataSource` what can only be read forward. All of their state is in `state_dict`, so a run that continues from
a checkpoint gets the groups that the unbroken run would have got.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slime_core.contracts.data import UNKNOWN_LENGTH, is_group
from slime_core.data.epochs import EpochReader
from slime_core.data.mixture import Mixture
from slime_core.data.notices import Notices
from slime_core.data.rows import open_rows
from slime_core.data.sample_columns import snapshot
from slime_core.data.samples import Columns, sample_from_row
from slime_core.data.streams import StreamError, StreamReader
from slime_core.errors import ArgumentError, CheckpointError, DataError, PluginError
from slime_core.sample import Group, Sample, stored_sample

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.data import BufferPop


class RowReader(Protocol):
    """Reads the rows of one data set, one after another, without end.

    Attributes:
        name: what messages call the set.
        epoch: how many epochs are over.
    """

    name: str
    epoch: int

    def __len__(self) -> int:
        """The rows of one epoch."""
        ...

    def take(self) -> tuple[dict[str, Any], str]:
        """Return the next row, and its "file:row". Moves on even if it raises."""
        ...

    def firsts(self) -> Iterator[Callable[[], tuple[dict[str, Any], str] | None]]:
        """Yield, for every file that can be opened beside this, what reads its first row, if there is one, and its "file:row". Does not
        move on."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Return {file: digest of its content}."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        ...


def pop_first(args: RunArguments, rollout_id: int | None, buffer: list[Group], num_samples: int) -> list[Group]:
    """Remove from the buffer the groups that have waited longest, and return them."""
    groups = buffer[:num_samples]
    del buffer[:num_samples]
    return groups


class GlobalDataSource:
    """Groups of `--n-samples-per-prompt` samples from `--prompt-data`.

    All files are one set of rows or, with `--prompt-data-weights`, each of its paths and globs is a set of its own, in
    epochs of its own, and prompts come from the sets in turns whose shares are the weights at any time. A sample of a
    mixture names its set as `dataset`.

    With `--rollout-shuffle`, the order of a set's epoch e is a shuffle seeded with `--rollout-seed`, the set's number
    and e. Reading needs 8 bytes a row for that order; the rows stay on disk.

    Args:
        args: reads `prompt_data`, `prompt_data_weights`, `input_key`, `label_key`, `tool_key`, `metadata_key`,
            `rollout_shuffle`, `rollout_seed`, `n_samples_per_prompt` and `malformed_row`.
        buffer_pop: how groups leave the buffer.

    Attributes:
        counts: what was left out so far, for the metrics: "malformed_rows".
        buffer: groups that were given back unfinished.
    """

    def __init__(self, args: RunArguments, buffer_pop: BufferPop = pop_first) -> None:
        if not args.prompt_data:
            raise ArgumentError("There is no data to train on; name a file with --prompt-data.")
        self.args = args
        self.buffer: list[Group] = []
        self.counts = {"malformed_rows": 0}
        self._buffer_pop = buffer_pop
        self._rollout_id: int | None = None
        self._next_group = 0
        self._next_sample = 0
        self._columns = Columns.of(args)
        self._notices = Notices()
        weights = args.prompt_data_weights
        if weights:
            _check_weights(weights, args.prompt_data)
            self._names = _names(args.prompt_data)
            self._readers = [self._reader(n, [spec], spec) for n, spec in enumerate(args.prompt_data)]
        else:
            self._names = []  # one set needs none
            self._readers = [self._reader(0, args.prompt_data, "--prompt-data")]
        self._mixture = Mixture(weights or [1])

    def _reader(self, number: int, specs: Sequence[str], name: str) -> RowReader:
        """Open set `number`, whose files are `specs`; messages call it `name`."""
        seed = self.args.rollout_seed + (number << 64) if self.args.rollout_shuffle else None
        return EpochReader(open_rows(specs), name, seed)

    def __len__(self) -> int:
        """The rows of all sets together, whatever the weights: these do not change how long a run is."""
        return sum(map(len, self._readers))

    def fingerprint(self) -> dict[str, str]:
        """Return {file: digest of its content}, over the files of all sets."""
        return {file: digest for reader in self._readers for file, digest in reader.fingerprint().items()}

    def metrics(self) -> dict[str, float]:
        """Return two numbers for each set of a mixture: "NAME/prompts", how many prompts were taken from it so far, and
        "NAME/epoch", how many of its epochs are over. {} without a mixture."""
        return {
            f"{name}/{metric}": float(value)
            for name, reader, taken in zip(self._names, self._readers, self._mixture.chosen, strict=False)
            for metric, value in (("prompts", taken), ("epoch", reader.epoch))
        }

    def rollout_started(self, rollout_id: int) -> None:
        """Tell the buffer filter from now on that its groups are for this rollout."""
        self._rollout_id = rollout_id

    def get_samples(self, num_samples: int) -> list[Group]:
        """Return the next `num_samples` groups: from the buffer first, then from the files.

        Raises:
            DataError: a row is malformed and `--malformed-row` is "error", or every row of an epoch is.
        """
        groups = self._from_buffer(num_samples)
        while len(groups) < num_samples:
            groups.append(self._new_group())
        return groups

    def __call__(self, num_samples: int) -> list[Group]:
        """The same: slime hands this method itself, in place of its data source, to `--rollout-all-samples-process-path`."""
        return self.get_samples(num_samples)

    def first_samples(self) -> Iterator[Sample | DataError]:
        """Yield the sample of the first row of every file, or what is wrong with it, without moving on."""
        for reader in self._readers:
            for read in reader.firsts():
                try:
                    if first := read():
                        yield sample_from_row(self._columns, *first)
                except DataError as error:
                    yield error

    def add_samples(self, groups: list[Group]) -> None:
        """Put unfinished groups at the end of the buffer."""
        for group in groups:
            if not is_group(group):
                raise PluginError(
                    f"add_samples was given {type(group).__name__} where a group belongs; "
                    "expected a list of groups, each a list of at least one Sample."
                )
        self.buffer.extend(groups)

    def state_dict(self, with_samples: bool = False) -> dict[str, Any]:
        """Return position, numbering, counts and buffer as plain JSON data.

        Args:
            with_samples: the buffer has samples, and not what `Sample.to_dict` makes of them.
        """
        stored = snapshot if with_samples else Sample.to_dict
        return {
            "sets": [reader.state_dict() for reader in self._readers],
            "mixture": self._mixture.state_dict(),
            "next_group": self._next_group,
            "next_sample": self._next_sample,
            "counts": dict(self.counts),
            "buffer": [[stored(sample) for sample in group] for group in self.buffer],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            CheckpointError: the state was taken over other data.
        """
        if len(state["sets"]) != len(self._readers):
            raise CheckpointError(
                f"The checkpoint's run had {len(state['sets'])} data sets, this one has {len(self._readers)}. Continue "
                "with the same --prompt-data and --prompt-data-weights, or start a new run from the exported weights."
            )
        for reader, position in zip(self._readers, state["sets"], strict=True):
            reader.load_state_dict(position)
        self._mixture.load_state_dict(state["mixture"])
        self._next_group = state["next_group"]
        self._next_sample = state["next_sample"]
        self.counts = dict(state["counts"])
        self.buffer = [list(map(stored_sample, group)) for group in state["buffer"]]

    def _from_buffer(self, num_samples: int) -> list[Group]:
        if not self.buffer or num_samples < 1:
            return []
        return list(self._buffer_pop(self.args, self._rollout_id, self.buffer, num_samples))

    def _new_group(self) -> Group:
        first = self._next_good_sample()
        group = [first, *(copy.deepcopy(first) for _ in range(self.args.n_samples_per_prompt - 1))]
        for sample in group:
            sample.group_index, sample.index = self._next_group, self._next_sample
            self._next_sample += 1
        self._next_group += 1
        return group

    def _next_good_sample(self) -> Sample:
        """Return the sample of the next row. A malformed row is replaced by the next one of its set, so that the shares
        stay."""
        number = self._mixture.next()
        reader, problem, tried = self._readers[number], "", 0
        while tried < len(reader):
            tried += 1
            try:
                sample = sample_from_row(self._columns, *reader.take(), self._notices.columns)
            except StreamError:
                raise
            except DataError as error:
                if self.args.malformed_row == "error":
                    raise DataError(f"{error} (--malformed-row skip leaves such rows out.)") from None
                self.counts["malformed_rows"] += 1
                problem = str(error)
                continue
            if self._names:
                sample.note(dataset=self._names[number])
            return sample
        raise DataError(f"None of the {len(reader)} rows of {reader.name} can be used. The last one: {problem}")


class StreamingDataSource(GlobalDataSource):
    """Groups of samples from what can only be read forward: `.jsonl`, `.jsonl.gz`, `.jsonl.zst` and pipes.

    Every set begins again behind its last file. Its length is not known before that, so a run needs `--num-rollout`.

    Args:
        args: reads `shuffle_buffer_size` too: how many rows `--rollout-shuffle` shuffles together.
    """

    def _reader(self, number: int, specs: Sequence[str], name: str) -> RowReader:
        seed = f"{self.args.rollout_seed} {number}" if self.args.rollout_shuffle else None
        return StreamReader(specs, name, self.args.shuffle_buffer_size, seed)

    def __len__(self) -> int:
        """The rows of one pass through all sets; `UNKNOWN_LENGTH` until each of them was read to its end once."""
        return min(super().__len__(), UNKNOWN_LENGTH)


def _check_weights(weights: Sequence[float], specs: Sequence[str]) -> None:
    if len(weights) != len(specs):
        raise ArgumentError(
            f"--prompt-data-weights has {len(weights)} numbers for {len(specs)} data sets ({', '.join(specs)}); give "
            "one for each path or glob of --prompt-data."
        )
    if wrong := [weight for weight in weights if weight <= 0]:
        raise ArgumentError(f"--prompt-data-weights holds {wrong[0]:g}; weights are above 0. Leave such a set out.")


def _names(specs: Sequence[str]) -> list[str]:
    """Return a short name for each set: the file's without extensions if no other set has it, else the whole spec."""
    short = [Path(spec.split("@[")[0]).name.partition(".")[0] for spec in specs]
    return [name if name and short.count(name) == 1 else spec for name, spec in zip(short, specs, strict=True)]
