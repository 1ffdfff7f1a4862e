"""What `torch.save` wrote, read as data alone: nothing in it is executed, and it takes no more memory than it has bytes.

Train backends read every such file, or part of a file, through this.
"""

from __future__ import annotations

import _compat_pickle
import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from slime_core.tensors.bounded_pickle import BoundedUnpickler


def load_stored(source: Path | bytes) -> Any:
    """Tensors and plain data from a file of `torch.save`, or from its bytes. Tensors come into host memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or says that it holds more than it has bytes.
        pickle.UnpicklingError: it holds something else than tensors and plain data.
        RuntimeError: it is damaged.
    """
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        require_bounded(stream)
        return torch.load(stream, map_location="cpu", weights_only=True)


def require_bounded(stream: IO[bytes]) -> None:
    """Refuse a file of `torch.save` from which torch would make more than it has bytes. Leaves the stream at its start.

    Raises:
        ValueError: it has compressed parts, which `torch.save` does not write; or is in the format before 1.6, whose tensors have the
            sizes that it says; or is no file of `torch.save` at all.
        pickle.UnpicklingError: it makes something of a size that it says instead of holding it: a bytearray, a tensor that shows the
            same numbers again and again. Or it holds something else than tensors and plain data.
    """
    size = stream.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as parts:
            wanted = sum(part.file_size for part in parts.infolist())
            packed = [part.filename for part in parts.infolist() if part.compress_type != zipfile.ZIP_STORED]
            if not packed and wanted <= size:
                _require_bounded_pickle(parts)
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"it is no file of torch.save ({error})") from error
    if packed or wanted > size:
        raise ValueError(f"it has {size} bytes and says that they are {wanted}: {', '.join(packed[:3]) or 'all parts'}")
    stream.seek(0)


def _require_bounded_pickle(parts: zipfile.ZipFile) -> None:
    sizes = {part.filename: part.file_size for part in parts.infolist()}
    root = next(iter(sizes), "").partition("/")[0]
    if f"{root}/data.pkl" not in sizes or len(sizes) < len(parts.infolist()):
        raise ValueError("it is no file of torch.save (it has no data.pkl, or parts of the same name)")
    _Sizes(parts.read(f"{root}/data.pkl"), {name.removeprefix(f"{root}/data/"): n for name, n in sizes.items()}).load()


@dataclass(frozen=True)
class _Named:
    """What a name in a pickle stands for, which is not looked up."""

    name: str


@dataclass(frozen=True)
class _Stored:
    """The numbers of a tensor.

    Attributes:
        length: in bytes.
        item: bytes of a number.
    """

    length: int
    item: int


class _Made:
    """Whatever a pickle makes."""

    def __setstate__(self, state: Any) -> None: ...


_HARMLESS = {
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter"),
    *("torch.Size", "torch.device", "torch.serialization._get_layout"),
    *("builtins.complex", "builtins.set"),
}
_DICTS = {"collections.OrderedDict", "collections.Counter"}
_STORED_BYTES = {
    name: size
    for size, names in {
        1: "Untyped Byte Char Bool",
        2: "Short Half BFloat16",
        4: "Int Float",
        8: "Long Double ComplexFloat",
    }.items()
    for name in names.split()
} | {"ComplexDouble": 16}
_TENSORS = {"torch._utils._rebuild_tensor_v2": 0, "torch._utils._rebuild_tensor_v3": 6}
"""What makes tensors, and which of its arguments names their dtype; 0: it is that of the numbers."""


class _Sizes(BoundedUnpickler):
    """Reads the pickle of a file of `torch.save` without making what it says, only to see that torch may.

    Args:
        sizes: of the parts with numbers, in bytes.
    """

    def __init__(self, content: bytes, sizes: Mapping[str, int]) -> None:
        super().__init__(content)
        self._sizes = sizes

    def find_class(self, module: str, name: str) -> _Named:
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        return _Named(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Stored:
        match pid:
            case ("storage", _Named(kind), str(key), _, int(count)):
                item = _bytes_of(kind)
                if not 0 <= count * item <= self._sizes.get(key, 0):
                    raise pickle.UnpicklingError(
                        f"it has {self._sizes.get(key, 0)} bytes of the {count * item} of a tensor"
                    )
                return _Stored(count * item, item)
        raise pickle.UnpicklingError("it holds something else than tensors beside its pickle")

    def call(self, made_by: Any, args: tuple[Any, ...]) -> Any:
        match made_by, args:
            case _Named("_codecs.encode"), (str(text), "latin1" | "latin-1"):
                return text.encode("latin1")
            case _Named("builtins.bytearray"), () | (bytes(),) | (str(), "latin-1"):
                return _Made()
            case _Named("torch._tensor._rebuild_from_type_v2"), (_Named() as of_tensors, _, tuple(own), _):
                return self.call(of_tensors, own)
            case _Named(name), (_Stored() as stored, _, tuple(size), _, *_) if name in _TENSORS:
                item = _bytes_of(args[at].name) if (at := _TENSORS[name]) else stored.item
                if math.prod(size) * item > stored.length:
                    raise pickle.UnpicklingError(
                        f"it has a tensor of {math.prod(size)} numbers in {stored.length} bytes"
                    )
                return _Made()
            case _Named(name), _ if name in _HARMLESS:
                return _Made()
            case _Named(name), () | (dict(),) if name in _DICTS:
                return OrderedDict()
        raise pickle.UnpicklingError(f"it calls {getattr(made_by, 'name', made_by)}, as no tensors or plain data need")

    new = call


def _bytes_of(name: str) -> int:
    """Bytes of a number of this dtype or kind of storage, such as "torch.float16" or "torch.HalfStorage"."""
    last = name.rpartition(".")[2]
    dtype = getattr(torch, last, None)
    size = dtype.itemsize if isinstance(dtype, torch.dtype) else _STORED_BYTES.get(last.removesuffix("Storage"))
    if size is None:
        raise pickle.UnpicklingError(f"it has numbers of the type {name}")
    return size


class Part(io.RawIOBase):
    """A part of an open file, as a file.

    Args:
        start, length: in bytes; what is beyond the file's end is not there.
    """

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        super().__init__()
        self._file, self._start = file, max(0, start)
        self._length = max(0, min(length, file.seek(0, io.SEEK_END) - self._start))
        self._at = 0

    def seekable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte is read, from the start of the part."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a byte of the part."""
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if at < 0:
            raise OSError(f"there is no byte {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes, and return how many there were."""
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
