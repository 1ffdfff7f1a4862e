"""The one reader of evaluation sets: the samples of every set that `--eval-prompt-data` names.

Called by the rollout functions. What becomes of a sample (whether it is masked, or answered by the engine) is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.data.notices import Notices
from slime_core.data.rows import open_rows
from slime_core.data.samples import Columns, sample_from_row
from slime_core.errors import DataError
from slime_core.sample import Sample

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set.

    Attributes:
        name: what metrics and messages call it.
        spec: its file, glob or folder, with an optional slice.
        columns: which columns of its rows hold what.
        malformed_row: what to do with a row that cannot be read: stop, or skip and count it.
    """

    name: str
    spec: str
    columns: Columns
    malformed_row: Literal["error", "skip"]

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
            sample.note(dataset=self.name)
            yield sample


def evaluation_sets(args: RunArguments, columns: Columns | None = None) -> tuple[EvaluationSet, ...]:
    """Return the sets that `--eval-prompt-data` names; none is opened yet.

    Args:
        columns: the columns of the evaluation sets, where they differ from those of the training data.

    Raises:
        ArgumentError: `--eval-prompt-data` is not made of pairs of name and path, or a name occurs twice.
    """
    read = columns or Columns.of(args)
    return tuple(EvaluationSet(name, spec, read, args.malformed_row) for name, spec in eval_sets(args))
