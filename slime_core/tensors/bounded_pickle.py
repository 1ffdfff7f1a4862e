"""Pickles that somebody gave away, read within bounds: memory and time grow with their bytes. Called by
`slime_core.tensors.dcp_metadata` and `slime_core.tensors.stored`, which say what may be called.

A pickle is a program, even where it may call nothing but makers of plain data. What it could do with these, and cannot here:

    bytearray(2**40)                            a number as a size
    [x, list(x), list(x), …]                    a few bytes for each further copy of a long list
    t = (t, t), sixty times, as a key           a hash that takes 2**60 steps, or more stack than there is
    a place 2**31 in the memo                   an array of that length (Python's own reader, so it is not used)
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from struct import unpack
from typing import Any, ClassVar

COPIED = 8
"""What the arguments of all calls may hold together, as a multiple of the pickle's bytes."""
LEAST_COPIED = 1 << 16
"""What they may hold in any case."""
LARGEST_KEY = 256
"""Parts of a key of a dict or a member of a set, tuples in tuples counted one by one."""

_LISTS = (list, tuple)
_COUNTED = (*_LISTS, str, bytes, bytearray, dict, set, frozenset)

_Load = Callable[["BoundedUnpickler"], None]


class BoundedUnpickler(pickle._Unpickler):  # the reader in Python: that in C trusts what it reads
    """Reads a pickle. Whoever derives from it says in `find_class` what its names stand for, and in `call` what calls make.

    Raises:
        pickle.UnpicklingError: by `load`: the pickle goes beyond the bounds.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)
        super().__init__(self._file)
        self._left = COPIED * len(content) + LEAST_COPIED

    def load(self) -> Any:
        """What the pickle holds. Frames, which only help to read ahead, are passed over."""
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append, self.proto = self.stack.append, 0
        self.read, self.readline = self._file.read, self._file.readline
        read, dispatch = self._file.read, self.dispatch
        try:
            while code := read(1):
                dispatch[code[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise EOFError("it is cut off")

    def call(self, made_by: Any, args: tuple[Any, ...]) -> Any:
        """What a call of something that `find_class` returned makes."""
        return made_by(*args)

    def new(self, made_by: Any, args: tuple[Any, ...]) -> Any:
        """A new object of a class that `find_class` returned, before it has its state."""
        return made_by.__new__(made_by, *args)

    def _checked(self, args: Any) -> tuple[Any, ...]:
        if type(args) is not tuple:
            raise pickle.UnpicklingError("it calls something with what are no arguments")
        for value in args:
            if isinstance(value, _COUNTED):
                self._left -= len(value)
                if isinstance(value, _LISTS):  # its items may become keys, or are pairs of a key and a value
                    for key in value:
                        if type(key) is not int:
                            require_small_key(key[0] if isinstance(key, _LISTS) and len(key) == 2 else key)
        if self._left < 0:
            raise pickle.UnpicklingError("it copies many times what it holds")
        return args

    def _reduce(self) -> None:
        args = self._checked(self.stack.pop())
        self.stack[-1] = self.call(self.stack[-1], args)

    def _new(self) -> None:
        args = self._checked(self.stack.pop())
        self.stack[-1] = self.new(self.stack[-1], args)

    def _build(self) -> None:
        if isinstance(self.stack[-2], type) or callable(self.stack[-2]):
            raise pickle.UnpicklingError(f"it changes {self.stack[-2]!r}")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    def _byte_array(self) -> None:
        (length,) = unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _set_item(self) -> None:
        require_small_key(self.stack[-2])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def _with_keys(load: _Load, step: int) -> _Load:  # type: ignore[misc]  # makes methods
        def loaded(self: BoundedUnpickler) -> None:
            for key in self.stack[::step]:
                require_small_key(key)
            load(self)

        return loaded

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it makes objects in a way that is not read")

    dispatch[pickle.FRAME[0]] = lambda self: self.read(8)
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _new
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _byte_array
    dispatch[pickle.SETITEM[0]] = _set_item
    for _code, _step in ((pickle.SETITEMS, 2), (pickle.DICT, 2), (pickle.ADDITEMS, 1), (pickle.FROZENSET, 1)):
        dispatch[_code[0]] = _with_keys(dispatch[_code[0]], _step)
    for _code in (pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = _refuse


def require_small_key(key: Any) -> None:
    """Raise `pickle.UnpicklingError` for a key whose hash would take long: tuples in tuples, also within objects."""
    if type(key) is str or type(key) is int:
        return
    parts, seen = [key], 0
    while parts:
        part = parts.pop()
        seen += 1
        if isinstance(part, tuple):
            inside: Iterable[Any] = part
        else:
            fields = getattr(part, "__dict__", None)
            inside = fields.values() if isinstance(fields, Mapping) and not isinstance(part, type) else ()
        if seen + len(parts) + len(inside) > LARGEST_KEY:  # type: ignore[arg-type]
            raise pickle.UnpicklingError(f"it has a key of more than {LARGEST_KEY} parts")
        parts.extend(inside)
