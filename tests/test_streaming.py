"""Data that can only be read forward: every row once a pass, shuffled in blocks, little memory, exact resume."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.cli import main
from slime_core.data import UNKNOWN_LENGTH, StreamingDataSource
from slime_core.data.jsonl import BOM
from slime_core.errors import CheckpointError, DataError
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample


@pytest.fixture(scope="session")
def arguments(default_arguments: Any) -> Any:
    """`arguments(*specs, **changes)`: shuffled, where that is asked for, in blocks of four rows."""
    return partial(default_arguments, shuffle_buffer_size=4)


def lines(*texts: object) -> bytes:
    return "".join(json.dumps({"input": str(text)}) + "\n" for text in texts).encode()


def write(path: Path, content: bytes) -> Path:
    """Packed as the file's extension says."""
    if path.suffix == ".gz":
        half = content.index(b"\n") + 1  # two members, as when archives are joined
        path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    elif path.suffix == ".zst":
        with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as packed:
            packed.write(content)
    else:
        path.write_bytes(content)
    return path


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Ten rows "0" … "9" in a plain, a gzip and a zstd file; a glob of them."""
    write(tmp_path / "a.jsonl", lines(0, 1, 2))
    write(tmp_path / "b.jsonl.gz", lines(3, 4, 5, 6))
    write(tmp_path / "c.jsonl.zst", lines(7, 8, 9))
    return str(tmp_path / "*.jsonl*")


def texts(groups: list[list[Sample]]) -> list[str]:
    return [str(group[0].prompt) for group in groups]


def test_files_of_all_kinds_are_read_one_after_another_and_begin_again(arguments: Any, shards: str) -> None:
    source = StreamingDataSource(arguments(shards))
    groups = source.get_samples(23)
    assert texts(groups) == list("01234567890123456789012")
    assert [Path(g[0].source).name for g in groups[2:8]] == [
        *("a.jsonl:3", "b.jsonl.gz:1", "b.jsonl.gz:2", "b.jsonl.gz:3", "b.jsonl.gz:4", "c.jsonl.zst:1")
    ]


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n\n\t\n", BOM + b"\n"])
@pytest.mark.parametrize("name", ["0.jsonl", "0.jsonl.gz", "b2.jsonl.zst", "d.jsonl.gz", "d.jsonl"])
def test_a_file_without_rows_is_read_over(
    arguments: Any, shards: str, tmp_path: Path, name: str, content: bytes
) -> None:
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(content))
    else:
        write(tmp_path / name, content)
    write(tmp_path / "b.jsonl.gz", b"\n \n" + lines(3, 4, 5, 6))
    source = StreamingDataSource(arguments(shards))
    firsts = list(source.first_samples())
    assert [Path(first.source).name for first in firsts if isinstance(first, Sample)] == [
        "a.jsonl:1",
        "b.jsonl.gz:3",
        "c.jsonl.zst:1",
    ]
    assert len(firsts) == 3
    assert texts(source.get_samples(20)) == list("01234567890123456789")


def test_rows_are_shuffled_in_blocks_anew_in_every_pass_and_each_comes_once(arguments: Any, shards: str) -> None:
    args = arguments(shards, rollout_shuffle=True)
    first, second = (texts(StreamingDataSource(args).get_samples(30)) for _ in range(2))
    other = texts(StreamingDataSource(arguments(shards, rollout_shuffle=True, rollout_seed=1)).get_samples(30))
    assert first == second != other
    passes = [first[i : i + 10] for i in (0, 10, 20)]
    for one in passes:
        assert sorted(one[:4]) == list("0123")
        assert sorted(one[4:8]) == list("4567")
        assert sorted(one[8:]) == list("89")
    assert len(set(map(tuple, passes))) == 3


def test_the_length_is_known_after_one_pass_and_not_before(arguments: Any, shards: str) -> None:
    source = StreamingDataSource(arguments(shards))
    assert len(source) == UNKNOWN_LENGTH
    source.get_samples(10)
    assert len(source) == UNKNOWN_LENGTH
    source.get_samples(1)
    assert len(source) == 10


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline_change_nothing(
    arguments: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + lines(0) + b"\n \r\n" + lines(1).rstrip())
    groups = StreamingDataSource(arguments(path)).get_samples(3)
    assert texts(groups) == ["0", "1", "0"]
    assert groups[1][0].source == f"{path}:4"


@settings(max_examples=40)
@given(
    before=st.lists(st.integers(0, 9), max_size=4),
    after=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    shuffle=st.booleans(),
    block=st.integers(1, 12),
    mixed=st.booleans(),
)
def test_a_resumed_stream_goes_on_like_the_unbroken_one(
    arguments: Any,
    tmp_path_factory: pytest.TempPathFactory,
    before: list[int],
    after: list[int],
    shuffle: bool,
    block: int,
    mixed: bool,
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    write(folder / "a.jsonl", lines(0, 1) + b"broken\n\n" + lines(2))
    write(folder / "b.jsonl.gz", lines(3, 4, 5, 6) + b'{"other": 1}\n')
    write(folder / "c.jsonl.zst", lines(7, 8, 9))
    args = arguments(
        *([folder / "a.jsonl", folder / "[bc].jsonl*"] if mixed else [folder / "*.jsonl*"]),
        prompt_data_weights=[1, 2.5] if mixed else None,
        rollout_shuffle=shuffle,
        shuffle_buffer_size=block,
        malformed_row="skip",
    )
    unbroken = StreamingDataSource(args)
    for count in before:
        unbroken.add_samples(unbroken.get_samples(count)[:1])
    resumed = StreamingDataSource(args)
    resumed.get_samples(3)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    assert resumed.state_dict() == unbroken.state_dict()
    for count in after:
        one, other = (source.get_samples(count) for source in (unbroken, resumed))
        assert [s.to_dict() for g in one for s in g] == [s.to_dict() for g in other for s in g]
    assert resumed.state_dict() == unbroken.state_dict()
    assert len(resumed) == len(unbroken)


def test_a_growing_file_is_read_on_and_new_files_are_found_in_the_next_pass(arguments: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", lines(0, 1))
    source = StreamingDataSource(arguments(tmp_path / "*.jsonl"))
    assert texts(source.get_samples(2)) == ["0", "1"]
    write(tmp_path / "a.jsonl", lines("new"))
    with path.open("ab") as file:
        file.write(lines(2))
    assert texts(source.get_samples(5)) == ["2", "new", "0", "1", "2"]


def test_a_checkpoint_of_a_file_that_has_grown_since_resumes_exactly(arguments: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(*range(6)))
    args = arguments(path, rollout_shuffle=True, shuffle_buffer_size=10)
    source = StreamingDataSource(args)
    source.get_samples(2)
    state, expected = source.state_dict(), texts(source.get_samples(4))
    with path.open("ab") as file:
        file.write(lines(6, 7))
    resumed = StreamingDataSource(args)
    resumed.load_state_dict(state)
    assert texts(resumed.get_samples(4)) == expected
    assert sorted(texts(resumed.get_samples(2))) == ["6", "7"]


def test_a_row_that_is_being_written_is_left_for_later(
    arguments: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = lines(0, "half")
    path = write(tmp_path / "a.jsonl", whole[:-6])
    source = StreamingDataSource(arguments(path))
    assert texts(source.get_samples(2)) == ["0", "0"]
    assert f"{path}:2: the last line is not finished" in caplog.text
    path.write_bytes(whole)
    assert texts(source.get_samples(1)) == ["half"]


def test_other_rows_at_the_place_of_the_checkpoint_are_refused(arguments: Any, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz"):
        path = write(tmp_path / name, lines(*range(9)))
        args = arguments(path, rollout_shuffle=True)
        source = StreamingDataSource(args)
        source.get_samples(6)
        for other in (lines(*range(4), "x", *range(5, 9)), lines(0, 1)):
            write(path, other)
            with pytest.raises(CheckpointError, match=r"are not those that the checkpoint's run was reading"):
                StreamingDataSource(args).load_state_dict(source.state_dict())


@contextmanager
def fed(path: Path, content: bytes) -> Iterator[Path]:
    """A pipe into which a thread writes `content`."""

    def feed() -> None:
        with suppress(BrokenPipeError):
            path.write_bytes(content)

    if not path.exists():
        os.mkfifo(path)
    writer = threading.Thread(target=feed)
    writer.start()
    try:
        yield path
    finally:
        if writer.is_alive():  # it may wait for a reader, or for one that reads on
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        writer.join(10)
        assert not writer.is_alive()


def test_a_pipe_is_read_once_and_its_end_is_an_error_that_says_what_to_do(arguments: Any, tmp_path: Path) -> None:
    with fed(tmp_path / "pipe", lines(0, 1, 2)) as pipe:
        source = StreamingDataSource(arguments(pipe, malformed_row="skip"))
        assert texts(source.get_samples(3)) == ["0", "1", "2"]
        with pytest.raises(DataError, match=r"pipe ended, and --prompt-data gave 3 rows.*or lower --num-rollout"):
            source.get_samples(1)


def test_a_pipe_that_gives_the_same_rows_again_resumes_exactly(arguments: Any, tmp_path: Path) -> None:
    content = lines(*range(12))
    args = arguments(tmp_path / "pipe", rollout_shuffle=True)
    with fed(tmp_path / "pipe", content):
        source = StreamingDataSource(args)
        source.get_samples(6)
        state = json.loads(json.dumps(source.state_dict()))
        expected = texts(source.get_samples(6))
        del source  # closes its end of the pipe, as the end of a process does
    with fed(tmp_path / "pipe", content):
        resumed = StreamingDataSource(args)
        resumed.load_state_dict(state)
        assert texts(resumed.get_samples(6)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            lines(0) + b"{broken\n" + lines(1),
            r"a\.jsonl:2: not valid JSON at column 2: .*--malformed-row skip",
        ),
        ("a.jsonl.gz", lines(0) + b"[1]\n", r"a\.jsonl\.gz:2: the row is a list, expected an object"),
        ("a.jsonl.zst", lines(0) + b'{"other": 1}\n', r"a\.jsonl\.zst:2: the row has no key 'input'; it has 'other'"),
        ("a.jsonl", b"\n\n", r"a\.jsonl holds no row; expected at least one"),
    ],
)
def test_a_bad_row_of_a_stream_is_named(
    arguments: Any, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        StreamingDataSource(arguments(write(tmp_path / name, content))).get_samples(3)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_was_cut_off_ends_the_run_even_where_malformed_rows_are_skipped(
    arguments: Any, tmp_path: Path, name: str
) -> None:
    noise = random.Random(0)
    path = write(tmp_path / name, lines(*(noise.getrandbits(256) for _ in range(3000))))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(DataError, match=rf"{name}:\d+: the file cannot be read on: .*Write the file again"):
        StreamingDataSource(arguments(path, malformed_row="skip")).get_samples(3000)


def test_rows_that_are_all_malformed_are_an_error_after_one_pass(arguments: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"broken\n{}\n")
    with pytest.raises(DataError, match=r"None of the 2 rows of --prompt-data can be used"):
        StreamingDataSource(arguments(path, malformed_row="skip")).get_samples(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{p}/a.jsonl@[0:2]", "a stream has no row numbers, so it cannot be sliced"),
        ("{p}/a.parquet", r"a\.parquet cannot be streamed; expected \.jsonl, \.jsonl\.gz, \.jsonl\.zst or a pipe"),
        ("{p}/*.nothing", r"No file matches .*\*\.nothing"),
    ],
)
def test_what_cannot_be_streamed_is_refused(arguments: Any, tmp_path: Path, spec: str, message: str) -> None:
    for name in ("a.jsonl", "a.parquet"):
        write(tmp_path / name, lines(0))
    with pytest.raises(DataError, match=message):
        StreamingDataSource(arguments(spec.format(p=tmp_path)))


MEASURE = """
import json, resource, sys
from types import SimpleNamespace
from slime_core.data import StreamingDataSource
source = StreamingDataSource(SimpleNamespace(**json.loads(sys.argv[1])))
source.get_samples(300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(75):
    source.get_samples(100)
    source.state_dict()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_stream(arguments: Any, tmp_path: Path) -> None:
    row = lines("x" * 5000)
    path = write(tmp_path / "a.jsonl", row * 8_000)  # 40 MB
    words = [
        sys.executable,
        "-c",
        MEASURE,
        json.dumps(vars(arguments(path, shuffle_buffer_size=200, rollout_shuffle=True))),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 12_000  # KiB; a block is 1 MB


def test_a_run_over_a_stream_needs_a_number_of_rollouts_and_resumes_bit_for_bit(
    tiny_model: Path, chat_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = write(tmp_path / "rows.jsonl.gz", chat_rows.read_bytes())
    flags = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(packed), "--input-key", "messages"),
        *("--data-source-path", "streaming", "--rollout-shuffle", "--shuffle-buffer-size", "7"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--disable-compute-advantages-and-returns", "--rollout-batch-size", "5", "--lr", "1e-3"),
    ]
    assert main(["check", *flags, "--num-epoch", "1"]) != 0
    assert "Give --num-rollout instead" in capsys.readouterr().err
    assert main(["check", *flags, "--num-rollout", "5"]) == 0
    shown = capsys.readouterr().out
    assert "a stream of prompts, 5 rollouts" in shown
    assert "no effect" not in shown

    words = ["train", *flags, "--num-rollout", "5", "--save-interval", "2"]
    assert main([*words, "--save", str(tmp_path / "whole")]) == 0
    parts = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for later in ("iter_0000003", "iter_0000004"):
        shutil.rmtree(parts / later)
    assert main([*words, "--save", str(parts), "--load", str(parts)]) == 0
    losses = [
        [line["train/loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")
    ]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]
