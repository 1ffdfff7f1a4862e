"""`StreamReader`: rows that can only be read forward: compressed files, pipes, files that still grow.

Called by `StreamingDataSource`. Shuffling works in blocks: so many rows are read, shuffled and handed out, then the
next ones are read. A checkpoint therefore needs no row, only the position where the block begins; going on from it,
those rows are read again and compared with a digest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import random
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from slime_core.contracts.data import UNKNOWN_LENGTH
from slime_core.data.files import matching, parse_spec
from slime_core.data.jsonl import BOM, SPACE, parse_json
from slime_core.data.rows import object_row
from slime_core.errors import CheckpointError, DataError
from slime_core.plain import MAX_ROW_BYTES

logger = logging.getLogger(__name__)

_PIECE = 1 << 20


class StreamError(DataError):
    """The stream itself cannot be read on, so that no row can take the place of this one."""


@dataclass(frozen=True)
class LinePosition:
    """Where a line begins.

    Attributes:
        file: the number of the file.
        byte: the byte in the file, uncompressed.
        line: how many lines of the file come before.
    """

    file: int = 0
    byte: int = 0
    line: int = 0


class StreamReader:
    """Hands out the rows of `.jsonl`, `.jsonl.gz` and `.jsonl.zst` files or pipes, one file after another.

    Behind the last file the next pass begins, over the files that are there by then; a pipe cannot begin again. Memory
    holds `block` rows.

    Args:
        specs: paths and globs.
        name: what messages call the stream.
        block: how many rows are shuffled together.
        seed: the seed of the shuffling; None: rows come in the order of the files.

    Attributes:
        epoch: how many passes are over.
    """

    def __init__(self, specs: Sequence[str], name: str, block: int, seed: str | None) -> None:
        self.name, self.epoch = name, 0
        self._specs, self._size, self._seed = specs, block if seed is not None else 1, seed
        self._files = _find(specs)
        self._length: int | None = None  # rows of the last whole pass
        self._read = 0  # rows of this pass that were read
        self._open: io.BufferedIOBase | None = None  # the file of `_position`
        self._begin = LinePosition()  # where the block begins
        self._position = LinePosition()  # where the next line begins, behind the block
        self._number = 0  # the number of the block, counted over all passes
        self._lines: list[tuple[LinePosition, bytes]] = []
        self._digest = ""
        self._order: list[int] = []
        self._taken = 0  # rows of the block that were handed out

    def __len__(self) -> int:
        return UNKNOWN_LENGTH if self._length is None else self._length

    def firsts(self) -> Iterator[Callable[[], tuple[dict[str, Any], str] | None]]:
        """Yield, for every file that is no pipe, what reads its first row, if there is one, and its "file:line". Does not move on."""
        return (partial(_first_row, path) for path in self._files if path.is_file())

    def take(self) -> tuple[dict[str, Any], str]:
        """Return the next row, and its "file:line".

        Raises:
            DataError: it is no row; the next call goes on behind it.
            StreamError: there are no more rows to be had.
        """
        if self._taken == len(self._lines):
            self._next_block()
        position, line = self._lines[self._order[self._taken]]
        self._taken += 1
        return object_row(lambda: parse_json(line), lambda: self._where(position)), self._where(position)

    def fingerprint(self) -> dict[str, str]:
        """Return {}, as reading all of a stream may take for ever; `load_state_dict` compares rows instead."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain data."""
        return {
            "files": [str(path) for path in self._files],
            "begin": asdict(self._begin),
            "rows": len(self._lines),
            "digest": self._digest,
            "taken": self._taken,
            "number": self._number,
            "read": self._read,
            "length": self._length,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        What cannot be skipped, because it is compressed or a pipe, is read again up to there.

        Raises:
            CheckpointError: the rows at that position are others, or gone.
        """
        self._close()
        self._files = [Path(file) for file in state["files"]]
        self._position = self._begin = LinePosition(**state["begin"])
        self._lines, self._digest = [], ""
        if state["rows"]:
            self._read_block(state["rows"])
        if self._digest != state["digest"]:
            raise CheckpointError(
                f"The rows from {self._where(self._begin)} on are not those that the checkpoint's run was reading. "
                f"Give {self.name} the same files, or for a pipe the same rows from their beginning; or start a new "
                "run from the exported weights."
            )
        self._taken, self._number, self._read = state["taken"], state["number"], state["read"]
        self._length, self.epoch = state["length"], state["epoch"]
        self._order = self._block_order()

    def _next_block(self) -> None:
        self._read_block(self._size)
        if not self._lines:
            self._next_pass()
            self._read_block(self._size)
        if not self._lines:
            raise StreamError(f"{', '.join(map(str, self._files))} holds no row; expected at least one.")
        self._number, self._taken, self._read = self._number + 1, 0, self._read + len(self._lines)
        self._order = self._block_order()

    def _block_order(self) -> list[int]:
        order = list(range(len(self._lines)))
        if self._seed is not None:
            random.Random(f"{self._seed} {self._number}").shuffle(order)
        return order

    def _next_pass(self) -> None:
        if not self._read:
            return
        if pipes := [str(path) for path in self._files if path.is_fifo()]:
            raise StreamError(
                f"The pipe {', '.join(pipes)} ended, and {self.name} gave {self._read} rows, which is less than the "
                "run needs. Write more rows into it, or lower --num-rollout."
            )
        self._close()
        self._length, self._read, self.epoch = self._read, 0, self.epoch + 1
        self._files = _find(self._specs)
        self._position = LinePosition()

    def _read_block(self, rows: int) -> None:
        self._begin, self._lines = self._position, []
        digest = hashlib.blake2b(digest_size=16)
        while len(self._lines) < rows and (line := self._next_line()):
            self._lines.append(line)
            digest.update(line[1] + b"\n")
        self._digest = digest.hexdigest()

    def _next_line(self) -> tuple[LinePosition, bytes] | None:
        """Return the next line that is not blank; None at the end of the last file.

        The end is tried again the next time, since the file may grow.
        """
        while True:
            if self._open is None:
                self._open = _open_at(self._files[self._position.file], self._position.byte)
                self._close_file = weakref.finalize(self, self._open.close)  # also when the reader is dropped
            position = self._position
            try:
                line = self._open.readline(MAX_ROW_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise StreamError(
                    f"{self._where(position)}: the file cannot be read on: {error}. Write the file again."
                ) from None
            if len(line) > MAX_ROW_BYTES:
                raise StreamError(
                    f"{self._where(position)}: the row has more than {MAX_ROW_BYTES} bytes (64 MiB), and is not read. Take it out."
                )
            if not line:
                if position.file + 1 == len(self._files):
                    return None
                self._close()
                self._position = LinePosition(file=position.file + 1)
                continue
            ended = line.endswith(b"\n")
            text = (line.removeprefix(BOM) if position.byte == 0 else line).strip(SPACE)
            if text and not ended and self._is_being_written(position, text):
                self._open.seek(position.byte)
                return None
            self._position = replace(position, byte=position.byte + len(line), line=position.line + ended)
            if text:
                return position, text

    def _is_being_written(self, position: LinePosition, text: bytes) -> bool:
        """Whether the last line of the last file, which may still grow, is only the beginning of a row."""
        path = self._files[position.file]
        if position.file + 1 < len(self._files) or path.suffix.lower() != ".jsonl" or path.is_fifo():
            return False
        try:
            parse_json(text)
        except DataError:
            logger.warning("%s: the last line is not finished; it is left for later.", self._where(position))
            return True
        return False

    def _where(self, position: LinePosition) -> str:
        return f"{self._files[position.file]}:{position.line + 1}"

    def _close(self) -> None:
        if self._open is not None:
            self._close_file()
        self._open = None


def _find(specs: Sequence[str]) -> list[Path]:
    found = []
    for spec in specs:
        pattern, rows = parse_spec(spec)
        if rows != slice(None):
            raise DataError(f"{spec}: a stream has no row numbers, so it cannot be sliced; leave @[…] out.")
        for path in matching(pattern):
            if not (path.is_fifo() or path.name.lower().endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))):
                raise DataError(
                    f"{path} cannot be streamed; expected .jsonl, .jsonl.gz, .jsonl.zst or a pipe. Other files are "
                    "read with --data-source-path global."
                )
            found.append(path)
    return found


def _first_row(path: Path) -> tuple[dict[str, Any], str] | None:
    """The first row of a file, which is opened and closed for it, and its "file:line"; None if it holds none, as any may that grows.
    Raises `DataError` with file and row."""
    try:
        with _open_at(path, 0) as file:
            lines = enumerate(iter(lambda: file.readline(MAX_ROW_BYTES + 1), b""), start=1)
            texts = ((line.removeprefix(BOM).strip(SPACE), f"{path}:{number}") for number, line in lines)
            text, where = next((found for found in texts if found[0]), (b"", ""))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    return (object_row(lambda: parse_json(text), lambda: where), where) if text else None


def _open_at(path: Path, byte: int) -> io.BufferedIOBase:
    try:
        if path.is_fifo():
            logger.info("Waiting until somebody writes into the pipe %s.", path)
        file: io.BufferedIOBase
        if path.suffix.lower() == ".zst":
            import pyarrow as pa

            file = io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
        elif path.suffix.lower() == ".gz":
            file = gzip.open(path)  # noqa: SIM115  # the reader closes it
        else:
            file = path.open("rb")
            if not path.is_fifo():
                file.seek(byte)
                return file
        while byte > 0 and (piece := file.read(min(byte, _PIECE))):
            byte -= len(piece)
        return file
    except (OSError, EOFError, zlib.error) as error:
        raise StreamError(f"{path} cannot be read: {error}.") from None
