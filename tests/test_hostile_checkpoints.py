"""Nothing in a checkpoint, a dump or a model folder is executed, and none of them takes a run down without an error that names it."""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_dcp
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

from slime_core.data.ends import stored_trained_ends
from slime_core.errors import CheckpointError, DataError
from slime_core.rollout.debug_data import read_debug_data
from slime_core.run import checkpoints
from slime_core.run.saving import Saving
from slime_core.tensors.dcp_metadata import PlainReader, read_metadata
from slime_core.tensors.stored import load_stored

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STATE: dict[str, Any] = {"rollout_id": 3, "data_source": {}, "arguments": {}, "data": {}, "plugins": {}}


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_dcp({"model.w": torch.arange(6.0), "object": {"x": 1}}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def metadata_of(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())


def test_the_reader_gives_what_torchs_own_gives(folder: Path) -> None:
    found = read_metadata(folder)
    assert found.state_dict_metadata == metadata_of(folder).state_dict_metadata
    assert found.storage_data == metadata_of(folder).storage_data
    read = {"model.w": torch.empty(6)}
    load_dcp(read, storage_reader=PlainReader(folder), no_dist=True)
    assert torch.equal(read["model.w"], torch.arange(6.0))


@pytest.mark.parametrize("place", ["the whole file", "beside the tensors", "as an attribute", "as a key"])
def test_metadata_executes_nothing(place: str, folder: Path, mark: Path) -> None:
    data, bomb = metadata_of(folder), Bomb(mark)
    if place == "the whole file":
        data = bomb
    elif place == "beside the tensors":
        data.state_dict_metadata["bomb"] = bomb
    elif place == "as an attribute":
        data.planner_data = bomb
    else:
        data.state_dict_metadata[(1, bomb)] = None
    (folder / ".metadata").write_bytes(pickle.dumps(data))
    with suppress(CheckpointError):  # a stand-in beside the tensors hurts nobody
        read_metadata(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(bomb))
    assert mark.exists()  # it would have been seen


def test_chunks_execute_nothing(folder: Path, mark: Path) -> None:
    (file,) = folder.glob("*.distcp")
    place = next(p for i, p in metadata_of(folder).storage_data.items() if i.fqn == "model.w")
    evil = io.BytesIO()
    torch.save(Bomb(mark), evil)
    raw = file.read_bytes()
    data = metadata_of(folder)
    next(p for i, p in data.storage_data.items() if i.fqn == "model.w").offset = len(raw)
    next(p for i, p in data.storage_data.items() if i.fqn == "model.w").length = len(evil.getvalue())
    file.write_bytes(raw + evil.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(data))
    assert place.offset < len(raw)
    with pytest.raises(BaseException, match=r"it calls posix\.system"):
        load_dcp({"model.w": torch.empty(6)}, storage_reader=PlainReader(folder), no_dist=True)
    assert not mark.exists()


def test_metadata_names_only_files_of_its_folder(folder: Path) -> None:
    data = metadata_of(folder)
    next(iter(data.storage_data.values())).relative_path = "../../dev/zero"
    (folder / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(CheckpointError, match=r"it names the file '\.\./\.\./dev/zero', which is not in the folder"):
        read_metadata(folder)


def test_a_tensor_has_no_more_bytes_than_its_files(folder: Path) -> None:
    data = metadata_of(folder)
    data.state_dict_metadata["model.w"].size = torch.Size([10**15])
    (folder / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(
        CheckpointError, match=r"model\.w would have 4000000000000000 bytes, and all files there have \d+"
    ):
        read_metadata(folder)


def test_a_file_of_a_folder_that_is_gone_is_named(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        read_metadata(folder)


def compressed(data: Any) -> bytes:
    """A file of `torch.save` whose parts are compressed, and so may be a thousand times larger than they look."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(data, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


def in_the_old_format(data: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(data, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (compressed(torch.zeros(10**6)), r"has \d+ bytes and says that they are 4\d{6}: "),
        (in_the_old_format(torch.zeros(3)), "is no file of torch.save"),
        (b"", "is no file of torch.save"),
        (b"PK\x05\x06" + b"\xff" * 18, "is no file of torch.save"),
    ],
)
def test_what_torch_saved_takes_no_more_memory_than_it_has_bytes(content: bytes, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_stored(content)
    (file,) = folder.glob("*.distcp")
    data, raw = metadata_of(folder), file.read_bytes()
    for place in data.storage_data.values():
        place.offset, place.length = len(raw), len(content)
    file.write_bytes(raw + content)
    (folder / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(CheckpointException, match=message):
        load_dcp({"model.w": torch.empty(6)}, storage_reader=PlainReader(folder), no_dist=True)


class Calls:
    """Something whose pickle calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


LONG = list(range(10**4))
DOUBLED = b")" + b"2\x86" * 60
"""A tuple of twice a tuple of twice …: 2**60 parts."""


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (Calls(bytearray, 2**40), r"it calls builtins\.bytearray"),
        (Calls(torch.FloatTensor, 2**40), r"it calls torch\.FloatTensor"),
        (Calls(torch.UntypedStorage, 2**40), r"it calls torch\.storage\.UntypedStorage"),
        (Calls(codecs.encode, b"ab", "hex"), r"it calls _codecs\.encode"),
        (
            Calls(torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.ones(2), torch.float64, "cpu", False),
            "it calls",
        ),
        (torch.zeros(1).expand(2**40), r"it has a tensor of 1099511627776 numbers in 4 bytes"),
        ([Calls(set, LONG) for _ in range(100)], "it copies many times what it holds"),
        (Calls(hash, "executed"), r"it calls builtins\.hash"),
    ],
)
def test_what_torch_saved_makes_nothing_of_a_size_that_it_only_says(held: Any, message: str) -> None:
    stream = io.BytesIO()
    torch.save({"held": held}, stream)
    with pytest.raises(pickle.UnpicklingError, match=message):
        load_stored(stream.getvalue())


def test_a_tensor_that_says_more_numbers_than_its_part_has_is_refused() -> None:
    stream = io.BytesIO()
    torch.save(torch.zeros(9), stream)
    content = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(content, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"K\x09tq", b"K\xfftq"))
    with pytest.raises(pickle.UnpicklingError, match=r"it has 36 bytes of the 1020 of a tensor"):
        load_stored(content.getvalue())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"}" + DOUBLED + b"Ns.", "it has a key of more than 256 parts"),
        (b"}(" + DOUBLED + b"Nu.", "it has a key of more than 256 parts"),
        (b"}(" + b")" + b"\x85" * 10**5 + b"Nu.", "it has a key of more than 256 parts"),
        (b"\x8f(" + DOUBLED + b"\x90.", "it has a key of more than 256 parts"),
        (b"cbuiltins\nset\n(](" + DOUBLED + b"etR.", "it has a key of more than 256 parts"),
        (
            b"](" + b"K\x01" * 10**4 + b"eq\x000" + b"cbuiltins\nlist\nh\x00\x85R" * 100 + b".",
            "it copies many times what it holds",
        ),
        (b"\x96" + (2**40).to_bytes(8, "little") + b".", "it is cut off"),
        (b"ctorch\nSize\nN}X\x01\x00\x00\x00xNs\x86b.", "it changes"),
        (b"}r" + (2**24).to_bytes(4, "little") + b".", "it holds a dict"),
    ],
)
def test_a_metadata_takes_time_and_memory_as_it_has_bytes(program: bytes, message: str, folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04" + program)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message):
        read_metadata(folder)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_compression_that_the_metadata_names_is_refused(folder: Path) -> None:
    data = metadata_of(folder)
    next(iter(data.storage_data.values())).transform_descriptors = ["zstd"]
    (folder / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(CheckpointError, match=r"its tensors are transformed by \['zstd'\], which is not read"):
        read_metadata(folder)


def saved(folder: Path) -> Path:
    with Saving(folder, 3) as saving:
        (saving.trainer / "weights.bin").write_bytes(b"w" * 100)
        return saving.finish(STATE)


def _lists(path: Path, name: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[name] = checkpoints.describe(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))


def _further(path: Path) -> None:
    (path / "trainer" / "random_00009.pt").write_bytes(pickle.dumps(1))


def _link(path: Path) -> None:
    (path / "trainer" / "weights.bin").rename(path.parent / "elsewhere")
    (path / "trainer" / "weights.bin").symlink_to(path.parent / "elsewhere")


def _outside(path: Path) -> None:
    (path.parent / "outside").write_bytes(b"x")
    _lists(path, "../outside")


def _deep(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file that is not listed": (_further, r"trainer/random_00009\.pt is not in its manifest"),
    "a link in the place of a file": (_link, r"damaged: trainer/weights\.bin"),
    "a file outside": (_outside, r"damaged: \.\./outside"),
    "a manifest that is a list": (lambda path: (path / "manifest.json").write_text("[]"), "lists no state.json"),
    "a manifest of nothing": (lambda path: (path / "manifest.json").write_text("{}"), "lists no state.json"),
    "a manifest nested for ever": (_deep, "nested too deeply"),
    "a manifest that is no text": (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "can't decode"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_is_what_its_manifest_lists(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    path = saved(tmp_path / "run")
    assert checkpoints.load_state(path) == STATE
    change(path)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_state(path)


@pytest.mark.parametrize("key", STATE)
def test_a_state_has_what_every_run_stores(key: str) -> None:
    for state in ({**STATE, key: None}, {**STATE, key: [1]}, {k: v for k, v in STATE.items() if k != key}):
        with pytest.raises(CheckpointError, match=f"has no '{key}' of a run"):
            checkpoints.require_state(state)


SAMPLE = {"group": 0, "tokens": [1, 2], "response_length": 1, "reward": 1.0, "status": "completed"}
DUMPS: dict[str, tuple[Any, str]] = {
    "a pickle": (b"\x80\x04cos\nsystem\n(S'touch x'\ntR.", "cannot be read"),
    "a method": (
        [{"metrics": {}}, {**SAMPLE, "attributes": {"to_dict": 1}}],
        "has the attribute 'to_dict', which is no hook's",
    ),
    "a class": ([{"metrics": {}}, {**SAMPLE, "attributes": {"__class__": "os"}}], "has the attribute '__class__'"),
    "tokens of text": ([{"metrics": {}}, {**SAMPLE, "tokens": ["__import__('os')"]}], "has tokens that is none"),
    "a mask of text": ([{"metrics": {}}, {**SAMPLE, "loss_mask": "1"}], "has loss_mask that is none"),
    "a status": ([{"metrics": {}}, {**SAMPLE, "status": "os.system"}], "has the status 'os.system'"),
    "a field": ([{"metrics": {}}, {**SAMPLE, "__reduce__": 1}], "Sample does not know the fields __reduce__"),
    "metrics of text": ([{"metrics": {"x": "y"}}, SAMPLE], "no object of numbers"),
    "no object": ([{"metrics": {}}, 5], "cannot be read"),
    "nested for ever": (b'{"metrics": {}}\n' + b"[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", DUMPS)
def test_a_dump_of_a_rollout_is_data(name: str, tmp_path: Path) -> None:
    content, message = DUMPS[name]
    file = tmp_path / "dump.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode())
    with pytest.raises(DataError, match=message):
        read_debug_data(file)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": 1}', '["x", null, 5]', "5"])
def test_trained_ends_are_numbers(content: str, tmp_path: Path) -> None:
    (tmp_path / "trained_ends.json").write_text(content)
    assert stored_trained_ends(tmp_path) == [number for number in (5,) if "5" in content]
