"""The options of `slime check` alone that say for which machine a run is looked at: `--elsewhere` and `--gpu-memory`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.arguments.recipe import Stage
from slime_core.arguments.recipe_names import MARK
from slime_core.errors import ArgumentError

HELP = """\
  --elsewhere         the run is for another machine: models, data, folders and GPUs that are not here are told, and are no mistake.
                      So it is with a recipe by name (@NAME) as long as its own --hf-checkpoint stands and is not here
  --gpu-memory N      GiB of one GPU of that machine: say whether the run has room, and what to change. Default: of the GPU here
"""
FLAGS = ("--elsewhere", "--gpu-memory")


@dataclass(frozen=True)
class LookOptions:
    """For which machine a run is looked at.

    Attributes:
        elsewhere: another one than this.
        gpu_memory: GiB of one of its GPUs; None: nobody said.
    """

    elsewhere: bool = False
    gpu_memory: float | None = None


def read_look_options(argv: Sequence[str]) -> tuple[LookOptions, list[str]]:
    """Return what these options say, and the command line without them.

    Raises:
        ArgumentError: one of them has a value that it cannot have.
    """
    elsewhere, memory, rest, words = False, None, [], list(argv)
    while words:
        flag, has_value, value = words.pop(0).partition("=")
        if flag not in FLAGS:
            rest.append(flag + has_value + value)
        elif flag == "--elsewhere":
            if has_value:
                raise ArgumentError(f"--elsewhere takes no value; given {value!r}.")
            elsewhere = True
        else:
            value = value if has_value else words.pop(0) if words else ""
            memory = _gib(value)
    return LookOptions(elsewhere, memory), rest


def is_an_example(stages: Sequence[Stage | None], recipe: str | None, flags: Sequence[str]) -> bool:
    """Whether a recipe by name stands as somebody else's machine has it: its own model is not here, and no other was given."""
    if (
        recipe is None
        or not recipe.startswith(MARK)
        or any(flag.partition("=")[0] == "--hf-checkpoint" for flag in flags)
    ):
        return False
    first: Any = stages[0].given.get("hf_checkpoint") if stages and stages[0] else None
    try:
        return isinstance(first, str) and not Path(first).exists()
    except OSError:  # another person's folder
        return True


def _gib(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < 100_000:
        raise ArgumentError(f"--gpu-memory is {value!r}; expected the GiB of one GPU, such as 80.")
    return found
