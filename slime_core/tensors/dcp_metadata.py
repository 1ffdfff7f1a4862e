"""The `.metadata` of a folder that torch.distributed.checkpoint wrote, read without executing any of it.

The file is a pickle, and unpickling calls whatever a file names. Here it gets the few classes that such a file consists of, and a
stand-in without effect for everything else. Train backends read every checkpoint through this, `slime convert` too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from slime_core.errors import CheckpointError
from slime_core.tensors.bounded_pickle import BoundedUnpickler
from slime_core.tensors.stored import Part, require_bounded

METADATA = ".metadata"
MAX_METADATA_BYTES = 1 << 30
"""Bytes that the file may have; one of a model of a trillion parameters on a thousand ranks has less."""
MAX_DIMENSIONS = 64
"""Dimensions that a tensor may have; torch has no larger ones."""

_KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "collections": {"OrderedDict", "defaultdict"},
    "builtins": {"dict", "list", "set", "tuple"},
}


def read_metadata(folder: Path) -> Metadata:
    """Return what the `.metadata` of a folder says.

    Raises:
        CheckpointError: it is missing or damaged, names files outside the folder or that are missing, or tensors that are larger
            than all files: memory for them would be taken before anything is read.
    """
    try:
        size = (folder / METADATA).stat().st_size
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"it has {size} bytes, and at most {MAX_METADATA_BYTES} are read")
        found = _Unpickler((folder / METADATA).read_bytes()).load()
        if not isinstance(found, Metadata):
            raise ValueError(f"it holds a {type(found).__name__}")
        _require_whole(found)
        if getattr(found, "storage_meta", None) is None:
            found.storage_meta = StorageMeta()
    except Exception as error:  # damaged bytes can fail in any way
        raise CheckpointError(f"{folder}: its {METADATA} cannot be read ({error!r}).") from error
    _require_sizes_of_files(folder, found)
    return found


class PlainReader(FileSystemReader):
    """torch's reader of such a folder, but that nothing in it is executed."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See `slime_core.tensors.dcp_metadata.read_metadata`."""
        found = read_metadata(Path(self.path))
        assert found.storage_meta is not None
        found.storage_meta.load_id = self.load_id
        return found

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        """The part of a file with one chunk, for `read_data` to load."""
        part = cast("IO[bytes]", Part(file, sinfo.offset, sinfo.length))
        require_bounded(part)
        return part


def _require_sizes_of_files(folder: Path, found: Metadata) -> None:
    paths = sorted({folder / place.relative_path for place in found.storage_data.values()})
    if missing := [path for path in paths if not path.is_file()]:
        raise CheckpointError(f"{missing[0]} is missing: the checkpoint is not whole.")
    total = sum(path.stat().st_size for path in paths)
    for name, about in found.state_dict_metadata.items():
        if isinstance(about, TensorStorageMetadata):
            wanted = math.prod(about.size) * about.properties.dtype.itemsize
            if wanted > total:
                raise CheckpointError(
                    f"{folder}: {name} would have {wanted} bytes, and all files there have {total}: they are cut off, or its "
                    f"{METADATA} is not theirs."
                )


def _require_whole(found: Metadata) -> None:
    """Raise where something is missing in it (`AttributeError`, `TypeError`), or a tensor lies in a file outside the folder, or
    compressed (`ValueError`)."""
    for about in found.state_dict_metadata.values():
        if isinstance(about, TensorStorageMetadata):
            if any(not 0 <= length < 1 << 63 for length in about.size) or len(about.size) > MAX_DIMENSIONS:
                raise ValueError("it has a tensor of a size that no tensor has")
            math.prod(about.size) * about.properties.dtype.itemsize + len(about.chunks)
    for place in found.storage_data.values():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(f"it names the file {place.relative_path!r}, which is not in the folder")
        if getattr(place, "transform_descriptors", None):
            raise ValueError(f"its tensors are transformed by {place.transform_descriptors}, which is not read")


class _Unpickler(BoundedUnpickler):
    """Makes what a `.metadata` consists of, and a stand-in for everything else: programs put objects of their own beside it."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if name in _KNOWN.get(module, ()) else _StandIn


class _StandIn:
    """An object of a class that is not needed here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)
