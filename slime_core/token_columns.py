"""`TokenColumn`: the values of the tokens of one sample in a flat typed array, which reads like a list.

Between a rollout function's answer and the model's input a sample holds its tokens, masks, log-probs, weight versions and advantages in columns: 5 to
18 bytes for a token where lists take 60, copied, compared, stored and sent to other processes without a look at each. Hooks see and set lists all
the same: a field of `Sample` that is kept as a column becomes a list when it is read (`TokenField`). `slime_core.token_arrays` reads fields
without that. numpy is imported with the first column.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, SupportsIndex, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int], np.dtype[Any]]

Value = TypeVar("Value", int, float, int | str)

_MUTATORS = ("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "__setitem__", "__delitem__")


class TokenColumn(Sequence[Value], Generic[Value]):
    """A list of numbers, or of a few words (values that occur again and again), that cannot be changed. Read, compared and added to it is
    a list: single values are Python's own, a sum with a list is a list, slices are columns that share its memory.

    Pickled with protocol 5, its array travels out of band, so that Ray's processes on one machine share it.

    Args:
        array: the values, of one axis; or, with `words`, the place of each value's word among those. It must not be changed afterwards.
        words: what the numbers stand for; None: themselves.
    """

    __slots__ = ("_array", "_words")
    __hash__ = None  # type: ignore[assignment]  # as lists
    __array_priority__ = 1000  # numpy leaves sums with its arrays to this class

    def __init__(self, array: Array, words: tuple[Value, ...] | None = None) -> None:
        if array.flags.writeable:
            array = array[:]
            array.flags.writeable = False
        self._array: Array = array
        self._words: tuple[Value, ...] | None = words

    @property
    def array(self) -> Array:
        """The values, read-only and without a copy; of a column of words, their places in `words`."""
        return self._array

    @property
    def words(self) -> tuple[Value, ...] | None:
        """The words that `array` counts; None for a column of numbers."""
        return self._words

    @property
    def nbytes(self) -> int:
        """The memory of the values."""
        return self._array.nbytes

    def tolist(self) -> list[Value]:
        """The values in a new list."""
        found = self._array.tolist()
        return found if self._words is None else list(map(self._words.__getitem__, found))

    copy = tolist

    def __len__(self) -> int:
        return self._array.size

    @overload
    def __getitem__(self, index: SupportsIndex) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> TokenColumn[Value]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return TokenColumn(self._array[index], self._words)
        try:
            value = self._array[index.__index__()].item()
        except AttributeError:
            raise TypeError(f"list indices must be integers or slices, not {type(index).__name__}") from None
        except IndexError:
            raise IndexError("list index out of range") from None
        return value if self._words is None else self._words[value]

    def __iter__(self) -> Iterator[Value]:
        return iter(self.tolist())

    def __reversed__(self) -> Iterator[Value]:
        return reversed(self.tolist())

    def __contains__(self, value: object) -> bool:
        return value in self.tolist()

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The first place of a value, as `list.index`."""
        return self.tolist().index(value, start, len(self) if stop is None else stop)

    def count(self, value: Any) -> int:
        """How often a value occurs, as `list.count`."""
        return self.tolist().count(value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenColumn):
            if self._words is None and other._words is None:
                import numpy as np

                return np.array_equal(self._array, other._array)
            return len(self) == len(other) and self.tolist() == other.tolist()
        if isinstance(other, list):
            return len(self) == len(other) and self.tolist() == other
        return NotImplemented

    def __lt__(self, other: Any) -> Any:
        return _compared(self, other, list.__lt__)

    def __le__(self, other: Any) -> Any:
        return _compared(self, other, list.__le__)

    def __gt__(self, other: Any) -> Any:
        return _compared(self, other, list.__gt__)

    def __ge__(self, other: Any) -> Any:
        return _compared(self, other, list.__ge__)

    def __add__(self, other: Any) -> list[Any]:
        if not isinstance(other, list | TokenColumn):
            return NotImplemented
        return [*self.tolist(), *other]

    def __radd__(self, other: Any) -> list[Any]:
        if not isinstance(other, list):
            return NotImplemented
        return [*other, *self.tolist()]

    def __mul__(self, times: Any) -> list[Value]:
        return self.tolist() * times  # type: ignore[no-any-return]  # any number will do

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return repr(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        import numpy as np

        if self._words is not None:
            return np.array(self.tolist(), dtype=dtype)
        own = self._array
        return own.astype(dtype) if (dtype is not None and own.dtype != dtype) or copy else own

    def __reduce__(self) -> tuple[Any, ...]:
        import numpy as np

        return TokenColumn, (np.ascontiguousarray(self._array), self._words)

    def __copy__(self) -> TokenColumn[Value]:
        return self

    def __deepcopy__(self, memo: Any) -> TokenColumn[Value]:
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name in _MUTATORS:
            _refuse(name)
        raise AttributeError(f"'TokenColumn' object has no attribute {name!r}")

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        _refuse("__setitem__")

    def __delitem__(self, index: Any) -> NoReturn:
        _refuse("__delitem__")


def _refuse(name: str) -> NoReturn:
    raise TypeError(
        f"{name.strip('_')}: the values of these tokens are kept in an array that cannot be changed. Make a list of them, change that, and "
        "set it: values = list(sample.loss_mask); …; sample.loss_mask = values."
    )


def _compared(column: TokenColumn[Any], other: Any, compare: Callable[[list[Any], list[Any]], Any]) -> Any:
    if isinstance(other, TokenColumn):
        other = other.tolist()
    return compare(column.tolist(), other) if isinstance(other, list) else NotImplemented


def column_of_ints(values: Sequence[int]) -> TokenColumn[int]:
    """Token ids, or other whole numbers, in 4 bytes each, or 8 where that is needed.

    Raises:
        TypeError: a value is none, or takes more than 64 bits.
    """
    import numpy as np

    try:
        return TokenColumn(np.frombuffer(_packed("i", values), dtype=np.int32))
    except TypeError:
        return TokenColumn(np.frombuffer(_packed("q", values), dtype=np.int64))


def _packed(kind: str, values: Sequence[float]) -> bytes:
    """The values in the bytes of C's type `kind`: of the ways to make an array of a list, the fastest that refuses what is no number."""
    try:
        return struct.pack(f"{len(values)}{kind}", *values)
    except struct.error as error:
        raise TypeError(str(error)) from None


def column_of_flags(values: list[int]) -> TokenColumn[int]:
    """A mask, in one byte each.

    Raises:
        TypeError, ValueError: a value is no whole number from 0 to 255.
    """
    import numpy as np

    return TokenColumn(np.array(bytearray(values)))  # `bytes` takes twice as long


def column_of_floats(values: Sequence[float]) -> TokenColumn[float]:
    """Log-probs, or other numbers, in 8 bytes each, or in 4 where that keeps every bit, as it does for what a model computed in float32.

    Raises:
        TypeError, OverflowError: a value is no number.
    """
    import numpy as np

    return narrow(np.frombuffer(_packed("d", values), dtype=np.float64))


def narrow(values: Array) -> TokenColumn[float]:
    """Numbers of 8 bytes, in 4 where that keeps every bit; those of 4 as they are."""
    import numpy as np

    if values.dtype == np.float32:
        return TokenColumn(values)
    short = np.empty(len(values), dtype=np.float32)
    with np.errstate(over="ignore"):
        for start in range(0, len(values), _BLOCK):
            block, exact = short[start : start + _BLOCK], values[start : start + _BLOCK]
            block[:] = exact
            if not (block == exact).all():
                return TokenColumn(values)
    return TokenColumn(short)


def two_words(values: Array) -> TokenColumn[float]:
    """Numbers, in one byte each where they are but two, such as the advantage of a sample and the 0 of its untrained tokens; others as they
    are."""
    import numpy as np

    if not len(values):
        return TokenColumn(values)
    bits = values.view(f"i{values.itemsize}")  # so that every bit is kept: -0.0 is not 0.0
    others = bits != bits[0]
    other = int(others.argmax())
    if others[other] and not ((bits == bits[other]) == others).all():
        return TokenColumn(values)
    return TokenColumn(others.view(np.uint8), (values[0].item(), values[other].item()))


_BLOCK = 1 << 16
"""Numbers that are looked at together: they stay in the processor's cache, and the first that needs 8 bytes ends the conversion."""


def column_of_words(values: list[int | str]) -> TokenColumn[int | str]:
    """Weight versions, of which a sample has few: one byte each, up to 256 different ones.

    Raises:
        TypeError: a value is neither an int nor a str.
    """
    import numpy as np

    if values and values.count(values[0]) == len(values):  # all the same, as most are
        words, codes = values[:1], np.zeros(len(values), dtype=np.uint8)
    else:
        places = {word: place for place, word in enumerate(dict.fromkeys(values))}
        words = list(places)
        codes = np.fromiter(map(places.__getitem__, values), dtype=np.int32, count=len(values))
        codes = codes.astype(np.uint8) if len(words) <= 256 else codes
    if not {int, str}.issuperset(map(type, words)):
        raise TypeError(f"weight versions are ints or strings, not {words[:5]}")
    return TokenColumn(codes, tuple(words))


COLUMNS: dict[str, Callable[[list[Any]], TokenColumn[Any]]] = {
    "tokens": column_of_ints,
    "loss_mask": column_of_flags,
    "rollout_log_probs": column_of_floats,
    "weight_versions": column_of_words,
}
"""The fields of a sample that have a value for each token, and what makes a column of such a list."""


class TokenField:
    """A field of `Sample` that may be kept as a column. Whoever reads it gets a list, which takes the column's place: it may be changed, and
    counts from then on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, sample: Any, owner: type | None = None) -> Any:
        if sample is None:
            return self
        try:
            value = sample.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{type(sample).__name__!r} object has no attribute {self._name!r}") from None
        if type(value) is TokenColumn:
            value = sample.__dict__[self._name] = value.tolist()
        return value

    def __set__(self, sample: Any, value: Any) -> None:
        sample.__dict__[self._name] = value
