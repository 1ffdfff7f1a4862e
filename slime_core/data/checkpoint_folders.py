"""What a folder of model weights is, told by the names of the files in it. Nothing is opened but a file with a number.

Programs that train with Megatron write folders that are named like this one's, `iter_0000123` and
`latest_checkpointed_iteration.txt`, and launch scripts give them to the same options. Whoever is given a folder asks
`recognise`, so that each is read for what it is, or refused by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slime_core.errors import ArgumentError

Format = Literal["slime", "huggingface", "torch_dist", "mp_rank", "pickle"]

LATEST = "latest_checkpointed_iteration.txt"
PREFIX = "iter_"

_WORDS: dict[Format, str] = {
    "slime": "a checkpoint of a run",
    "huggingface": "a Hugging Face checkpoint",
    "torch_dist": "a Megatron checkpoint (torch_dist)",
    "mp_rank": "a Megatron checkpoint in its older format, cut over the ranks that wrote it (mp_rank_XX)",
    "pickle": "a file of torch.save",
}

_DUMPS = ("model_optim_rng.pt", "model_rng.pt", "pytorch_model.bin", "consolidated.00.pth")
"""What programs call a file with all weights. Other files of torch.save may hold anything."""


@dataclass(frozen=True)
class Weights:
    """Weights on disk.

    Attributes:
        format: how they are written. A `slime` one is a checkpoint of a run, of which only the train backend that wrote it
            knows what is in `trainer/`.
        path: the folder (or file) that they are in, below the one that was given.
    """

    format: Format
    path: Path

    def __str__(self) -> str:
        return f"{_WORDS[self.format]}, {self.path}"


def is_of_a_run(folder: Path) -> bool:
    """Whether this is a checkpoint of one of slime's runs, complete or not. Of another program's it has not the files."""
    return (folder / "manifest.json").is_file() or (folder / "state.json").is_file()


def iterations(folder: Path) -> list[Path]:
    """All folders `iter_N` in a folder, whoever wrote them, by their number."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit() and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def recognise(path: Path) -> Weights | None:
    """The weights that a path leads to: itself, or what is in it; None where there are none.

    A folder of several checkpoints is read as Megatron reads it: the file `latest_checkpointed_iteration.txt` names the one
    that counts, or "release". Without that file it is the newest.
    """
    if path.is_file():
        return Weights("pickle", path) if path.suffix in (".pt", ".pth", ".bin", ".ckpt") else None
    if not path.is_dir():
        return None
    if is_of_a_run(path):
        return Weights("slime", path)
    if (path / "config.json").is_file():
        return Weights("huggingface", path)
    if (path / ".metadata").is_file() or any(path.glob("*.distcp")) or _common(path):
        return Weights("torch_dist", path)
    if any(child.is_dir() for child in path.glob("mp_rank_*")):
        return Weights("mp_rank", path)
    for child in _counted(path):
        if found := recognise(child):
            return found
    dumped = next((path / name for name in _DUMPS if (path / name).is_file()), None)
    return Weights("pickle", dumped) if dumped else None


def require_hugging_face(folder: str, option: str) -> None:
    """Refuse a folder that has weights of another format; one that has none is for the caller to refuse.

    Args:
        option: that names the folder, for messages.

    Raises:
        ArgumentError: says what the folder is, and what makes a Hugging Face checkpoint of it.
    """
    found = recognise(Path(folder))
    if found is None or found.format == "huggingface":
        return
    raise ArgumentError(f"{option} {folder} leads to {found}; expected a Hugging Face checkpoint. {advice(found)}")


def require_folder(folder: str, option: str) -> None:
    """Refuse a folder without a configuration, which is no Hugging Face checkpoint.

    Args:
        option: that names the folder, for messages.

    Raises:
        ArgumentError: there is no config.json in it.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ArgumentError(
            f"{option} {folder} is not a Hugging Face checkpoint: there is no {file}. Give the path of a downloaded model folder."
        )


def advice(found: Weights) -> str:
    """What to do with weights that cannot be read here, one sentence."""
    if found.format == "slime":
        return f"Go on with that run by --load, or make a model of it: slime export {found.path} NEW."
    if found.format == "torch_dist":
        return (
            f"Convert it: slime convert torch-dist-to-hf --input-dir {found.path} --output-dir NEW --origin-hf-dir HF, where HF "
            "is the Hugging Face checkpoint that it began with."
        )
    return "Convert it to torch_dist or to a Hugging Face checkpoint with the program that wrote it."


def _common(path: Path) -> bool:
    return (path / "common.pt").is_file() and (path / "metadata.json").is_file()


def _counted(path: Path) -> list[Path]:
    """The folders of a checkpoint in `path`, the one that counts first."""
    every = [*reversed(iterations(path)), *([path / "release"] if (path / "release").is_dir() else [])]
    try:
        named = (path / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return every
    chosen = path / (f"{PREFIX}{int(named):07d}" if named.isdigit() else named)
    return [chosen] if named and chosen.is_dir() else every
