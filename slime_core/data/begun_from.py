"""The weights of another program that a run began with (`--load`), kept in its checkpoints: a run that goes on from one of these has
its adapters on the same weights, and stops responses at the same tokens. Written by the train worker, read by whoever asks for initial
weights (`slime_core.training.initial_weights`) or for ends (`slime_core.data.ends`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from slime_core.data.checkpoint_folders import recognise
from slime_core.errors import CheckpointError

_FILE = Path("trainer") / "initial_weights.json"


@dataclass(frozen=True)
class BegunFrom:
    """What a checkpoint keeps of them.

    Attributes:
        folder: their folder, absolute.
        ends: the end tokens of that model.
    """

    folder: str
    ends: list[int] = field(default_factory=list)

    def write(self, checkpoint: Path) -> None:
        """Keep it in a checkpoint of a run, which has its folder `trainer` already."""
        (checkpoint / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def begun_from(load: str | None) -> BegunFrom | None:
    """What the checkpoints that `--load` leads to keep; None where it leads to none, or to those of a run that began with its own.

    Raises:
        CheckpointError: the file cannot be read.
    """
    found = recognise(Path(load)) if load else None
    if found is None or found.format != "slime" or not (file := found.path / _FILE).is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        folder, ends = kept["folder"], kept["ends"]
        if not isinstance(folder, str) or not all(type(end) is int for end in ends):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{file} is damaged: it does not say which weights the run began with.") from None
    return BegunFrom(folder, list(ends))
