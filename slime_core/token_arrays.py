"""What the tokens of a sample hold, as numpy arrays: for everything between a rollout function's answer and the model's input, which looks at all
tokens and at none by itself. Reading a sample here leaves it in columns (`slime_core.token_columns`); its fields give lists. A field that a hook
has left a list is read all the same, at the cost of a look at each value. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

from slime_core.token_columns import COLUMNS, TokenColumn, narrow

if TYPE_CHECKING:
    from slime_core.sample import Sample
    from slime_core.token_columns import Array


def kept(sample: Sample, name: str) -> Any:
    """The value of a field of `COLUMNS` as the sample keeps it: a column, a list, or None. It is not to be changed."""
    return vars(sample)[name]


def column_of(sample: Sample, name: str) -> TokenColumn[Any] | None:
    """A field of `COLUMNS` as a column; None where the sample has none.

    Raises:
        TypeError, ValueError, OverflowError: it holds what no column can (`slime_core.sample.check_rollout` says it in words).
    """
    values = vars(sample)[name]
    return values if values is None or type(values) is TokenColumn else COLUMNS[name](values)


def compact(samples: Iterable[Sample]) -> None:
    """Keep the fields of samples as columns from now on, in place, where they hold what columns can. Only the owner of samples may do that:
    a list that somebody else still holds is the sample's no longer."""
    for sample in samples:
        sample.compact()


def num_tokens(sample: Sample) -> int:
    """How many tokens prompt and response have."""
    return len(vars(sample)["tokens"])


def token_ids(sample: Sample) -> Array:
    """All tokens: (N,) int32, or int64 where that is needed."""
    found = column_of(sample, "tokens")
    assert found is not None
    return found.array


def prompt_ids(sample: Sample) -> Array:
    """The tokens before the response."""
    ids = token_ids(sample)
    return ids[: len(ids) - sample.response_length]


def trained(sample: Sample) -> Array:
    """`Sample.trained_mask`: (R,) bool. The mask has been checked: it holds 0 and 1 only."""
    import numpy as np

    mask = None if sample.remove_sample else column_of(sample, "loss_mask")
    if mask is not None:
        return mask.array.view(np.bool_)
    return np.full(sample.response_length, not sample.remove_sample)


def num_trained(sample: Sample) -> int:
    """How many tokens are trained: the sum of `Sample.trained_mask`."""
    import numpy as np

    if sample.remove_sample:
        return 0
    mask = column_of(sample, "loss_mask")
    return sample.response_length if mask is None else int(np.count_nonzero(mask.array.view(np.bool_)))


def log_probs(sample: Sample) -> Array | None:
    """`Sample.rollout_log_probs`: (R,) float32 or float64; None where there are none, or no token has one."""
    found = column_of(sample, "rollout_log_probs")
    return found.array if found else None


def versions(sample: Sample) -> Counter[int | str]:
    """How many of the response's tokens are of which weight version."""
    import numpy as np

    column = column_of(sample, "weight_versions")
    if column is None or column.words is None:
        return Counter(column)
    if len(column.words) == 1:
        return Counter({column.words[0]: len(column)})
    counts = np.bincount(column.array, minlength=len(column.words)).tolist()
    return Counter({word: count for word, count in zip(column.words, counts, strict=True) if count})


def same_prompt(one: Sample, other: Sample) -> bool:
    """Whether the tokens before the responses of two samples are the same."""
    import numpy as np

    return np.array_equal(prompt_ids(one), prompt_ids(other))


def array_of(row: Any) -> Array:
    """Numbers of a response's tokens as an array: of a column its own, of lists, arrays and others one of float64."""
    import numpy as np

    if type(row) is not TokenColumn:
        return np.asarray(row, dtype=np.float64)
    if row.words is None:
        return row.array
    first, second = row.words  # as `two_words` makes them
    return cast("Array", np.where(row.array.view(np.bool_), second, first))


def flat(rows: Iterable[Any], dtype: str = "float64") -> Array:
    """The numbers of several responses one after the other: (T,), new."""
    return flat_arrays(map(array_of, rows), dtype)


def flat_arrays(arrays: Iterable[Array], dtype: str = "float64") -> Array:
    """Arrays one after the other: (T,), new."""
    import numpy as np

    listed = list(arrays)
    return np.concatenate(listed, dtype=dtype, casting="unsafe") if listed else np.zeros(0, dtype)


def rows_of(values: Array, lengths: Iterable[int]) -> list[TokenColumn[float]]:
    """Cut numbers of the responses' tokens into a column for each: views of one array, which is not to be changed any more. It
    holds 4 bytes a number where that keeps every bit."""
    values, bounds = narrow(values).array, [0, *accumulate(lengths)]
    return [TokenColumn(values[start:end]) for start, end in pairwise(bounds)]
