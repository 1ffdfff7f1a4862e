"""Which files a data spec names: `path`, a glob, a folder of `datasets.save_to_disk`, each with an optional
`@[a:b]` slice of its rows. Called by `open_rows`."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_core.errors import ArgumentError, DataError, did_you_mean

EXTENSIONS = (".jsonl", ".json", ".parquet", ".arrow", ".feather")

_SLICED = re.compile(r"(?P<path>.+)@\[(?P<bounds>[^\[\]]*)\]", re.DOTALL)
_BOUNDS = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*")


def parse_spec(spec: str) -> tuple[str, slice]:
    """Split "path@[a:b]" into path and slice, which means what it means in Python; without one, all rows.

    Raises:
        DataError: the part in brackets is not a slice.
    """
    if not (sliced := _SLICED.fullmatch(spec)):
        return spec, slice(None)
    if not (bounds := _BOUNDS.fullmatch(sliced["bounds"])):
        raise DataError(
            f"{spec}: [{sliced['bounds']}] is not a slice of rows. "
            "Write path@[start:end] with whole numbers; either may be left out, and negative ones count from the end."
        )
    start, end = (int(bound) if bound else None for bound in bounds.groups())
    return sliced["path"], slice(start, end)


def find_files(pattern: str) -> list[Path]:
    """Return the files that `pattern` names, in the order in which their rows count; those of a glob sorted by name.

    Raises:
        DataError: nothing is there, a folder is no saved dataset, or a file's extension is unknown.
    """
    return [
        file for match in matching(pattern) for file in (_dataset_files(match) if match.is_dir() else [_known(match)])
    ]


def matching(pattern: str) -> list[Path]:
    """Return what is there under a path or glob, sorted by name; at least one.

    Raises:
        DataError: nothing is there.
    """
    try:
        path = Path(pattern).expanduser()
        if path.exists():
            return [path]
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a name that is too long, a user who is not there, a null byte
        raise DataError(f"{pattern[:100]!r} cannot be the path of a file: {error}.") from None
    if glob.has_magic(pattern):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(f"No file matches {pattern}.{_nearby(path)}")
        return matches
    raise DataError(f"There is no file {pattern}.{_nearby(path)}")


def require_other_file(option: str, output: str | Path, specs: Sequence[str]) -> None:
    """Check that what a command writes is none of the data files that it reads, however the two are spelled.

    Args:
        option: names the output, as in "--output".
        specs: what `open_rows` takes.

    Raises:
        ArgumentError: it is one of them.
        DataError: as `find_files`.
    """
    read = [file for spec in specs for file in find_files(parse_spec(spec)[0])]
    if os.path.exists(output) and any(file.exists() and file.samefile(output) for file in read):
        raise ArgumentError(
            f"{option} {output} is one of the files that are read, and would be replaced; name another file."
        )


def content_digest(path: Path) -> str:
    """Return the BLAKE2b digest (hex) of a file's content, which is read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _nearby(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and not glob.has_magic(str(folder)) and folder != folder.parent:
        folder, missing = folder.parent, folder
        if folder.is_dir():
            return f" The folder {missing} does not exist.{did_you_mean(missing.name, _names(folder))}"
    if not folder.is_dir():
        return ""
    return did_you_mean(path.name, _names(folder)) or f" The folder {folder} holds {_listed(_names(folder))}."


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def _known(path: Path) -> Path:
    if path.is_fifo() or path.suffix.lower() in (".gz", ".zst"):
        raise DataError(f"{path} can only be read forward: choose --data-source-path streaming, or unpack it.")
    if path.suffix.lower() not in EXTENSIONS:
        raise DataError(
            f"{path}: the extension {path.suffix or '(none)'} is unknown; expected one of {', '.join(EXTENSIONS)}, "
            "or a folder written by datasets.save_to_disk. Rename the file if its content is one of these."
        )
    return path


def _dataset_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder that Hugging Face `Dataset.save_to_disk` wrote, in order."""
    if (splits := folder / "dataset_dict.json").is_file():
        names = _read_json(splits).get("splits", [])
        raise DataError(f"{folder} holds the splits {', '.join(names)}; name one of them, such as {folder}/{names[0]}.")
    if not (folder / "state.json").is_file():
        raise DataError(
            f"{folder} is a folder without a saved dataset (no state.json); expected one written by "
            f"datasets.save_to_disk, or name files, such as '{folder}/*.jsonl'."
        )
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder} was saved with an indices file, so its Arrow files hold other rows than the dataset. "
            "Save it again: load_from_disk(folder).flatten_indices().save_to_disk(new_folder)."
        )
    return [folder / entry["filename"] for entry in state["_data_files"]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); save the dataset again.") from None
    return content
