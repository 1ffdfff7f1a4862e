"""The one reader of evaluation sets: the samples of every set that `--eval-prompt-data` names.

Called by the rollout functions. What becomes of a sample (whether it is masked, or answered by the engine) is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slime_core.arguments import RunArguments
from slime_core.arguments.groups.evaluation import args_of_set, eval_sets, metadata_of_set
from slime_core.data.files import content_digest, find_files, parse_spec
from slime_core.data.notices import Notices
from slime_core.data.rows import open_rows
from slime_core.data.samples import Columns, named_columns, sample_from_row
from slime_core.errors import DataError
from slime_core.sample import Sample


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set.

    Attributes:
        name: what metrics and messages call it.
        spec: its file, glob or folder, with an optional slice.
        columns: which columns of its rows hold what.
        malformed_row: what to do with a row that cannot be read: stop, or skip and count it.
        metadata: what goes into the metadata of every row.
        named: {field of an option: column} of what its rows may lack, where an option for this set names one.
    """

    name: str
    spec: str
    columns: Columns
    malformed_row: Literal["error", "skip"]
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)  # sets are keys of what is remembered
    named: Mapping[str, str] = field(default_factory=dict, hash=False)

    def samples(self, counts: Counter[str]) -> Iterator[Sample]:
        """Yield the samples of the rows in their order, without numbers; `dataset` is the set's name.

        Rows are read as they are asked for, and stay on disk until then.

        Args:
            counts: skipped rows are added to its "skipped_malformed".

        Raises:
            DataError: the file cannot be opened, or a row is malformed and `malformed_row` is "error".
        """
        rows, notices = open_rows([self.spec]), Notices()
        for number in range(len(rows)):
            try:
                sample = sample_from_row(self.columns, rows[number], rows.where(number), notices.columns)
            except DataError:
                if self.malformed_row == "error":
                    raise
                counts["skipped_malformed"] += 1
                continue
            if self.metadata:
                sample.metadata = {**sample.metadata, **self.metadata}
            sample.note(dataset=self.name)
            yield sample


def evaluation_sets(args: RunArguments) -> tuple[EvaluationSet, ...]:
    """Return the sets that `--eval-prompt-data` names, each with the columns that are its own; none is opened yet.

    Raises:
        ArgumentError: `--eval-prompt-data` is not made of pairs of name and path, or a name occurs twice.
    """
    return tuple(
        EvaluationSet(
            name,
            spec,
            _columns(args_of_set(args, name)),
            args.malformed_row,
            metadata_of_set(args, name),
            _named(args, name),
        )
        for name, spec in eval_sets(args)
    )


def _named(args: RunArguments, name: str) -> dict[str, str]:
    own = args_of_set(args, name)
    of_rows = {key: column for key, column in named_columns(own).items() if key in args.eval_set_options.get(name, {})}
    return of_rows if own.eval_tool_key is None else {**of_rows, "eval_tool_key": own.eval_tool_key}


def _columns(args: RunArguments) -> Columns:
    """The columns of evaluation sets: the options `--eval-*-key` or, where one is not given, those of training."""
    return replace(
        Columns.of(args),
        input_key=args.eval_input_key or args.input_key,
        label_key=args.eval_label_key or args.label_key,
        tool_key=args.eval_tool_key or args.tool_key,
        prefix="--eval-",
    )


def evaluation_fingerprint(args: RunArguments) -> dict[str, str]:
    """Return {file: digest of its content} of the evaluation sets. A set that is no file of this machine, such as one that a rollout
    function of somebody's own knows, has none."""
    found = {}
    for _, spec in eval_sets(args):
        try:
            found.update({str(path): content_digest(path) for path in find_files(parse_spec(spec)[0])})
        except (DataError, OSError):  # told by what reads the rows
            continue
    return found
