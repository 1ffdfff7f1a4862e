"""Paths with the number of a rollout in them, of exports and dumps: filled in for whoever writes, and searched for whoever reads.

They are texts for `str.format`, as in slime: `{rollout_id}` or `{rollout_id:05d}` is the number, `{{` and `}}` are braces of the name, and
`{rank}` is 0, that of the rank which writes for all.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path
from string import Formatter

from slime_core.errors import ArgumentError

_ANY = "\0"
"""Stands for a number where any will do: no path has this character."""


class _Any:
    def __format__(self, spec: str) -> str:
        return _ANY


def fillable(template: str | None) -> str | None:
    """Return what an option gives. For the options that are such paths, as pydantic's `field_validator`.

    Raises:
        ValueError: it cannot be filled in.
    """
    try:
        for number in (0, _Any()):
            _filled(template or "", number)
    except ArgumentError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    return template


def path_of_rollout(template: str, rollout_id: int) -> Path:
    """The path with the number of a rollout.

    Raises:
        ArgumentError: something else is to be filled in.
    """
    return Path(_filled(template, rollout_id))


def has_rollout(template: str) -> bool:
    """Whether each rollout has a path of its own. Raises as `path_of_rollout`."""
    return _ANY in _filled(template, _Any())


def paths_of_rollouts(template: str, moved: Callable[[str], Path] = Path) -> list[Path]:
    """The paths of rollouts that are there, in no order. Raises as `path_of_rollout`.

    Args:
        moved: where a path is now.
    """
    pattern = glob.escape(str(moved(_filled(template, _Any())))).replace(_ANY, "*")
    return [Path(path) for path in glob.glob(pattern)]


def rollouts_there(template: str) -> list[tuple[int, Path]]:
    """(rollout, path) of the rollouts whose paths are there, in no order; where a folder has the number, that folder. None where no part
    has it. Raises as `path_of_rollout`."""
    filled = str(Path(_filled(template, _Any())))
    depth = next((n for n, part in enumerate(Path(filled).parts, 1) if _ANY in part), None)
    if depth is None:
        return []
    number = re.compile(re.escape(filled).replace(_ANY, "(.*)", 1).replace(_ANY, ".*"))
    found = []
    for path in paths_of_rollouts(template):
        match = number.fullmatch(str(path))
        if match and match[1].isdecimal() and path_of_rollout(template, int(match[1])) == path:
            found.append((int(match[1]), Path(*path.parts[:depth])))
    return found


def as_template(path: str) -> str:
    """The text that stands for this very path."""
    return path.replace("{", "{{").replace("}", "}}")


def _filled(template: str, number: int | _Any) -> str:
    try:
        if any(conversion for *_, conversion in Formatter().parse(template)):
            raise ValueError("a conversion makes a text of the number")
        return template.format(rollout_id=number, rank=0)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ArgumentError(
            f"The path {template!r} cannot be filled in ({type(error).__name__}: {error}): {{rollout_id}} is the number of the rollout, "
            "{rollout_id:05d} the same with five digits, and braces that belong to a name are written twice, {{ and }}."
        ) from None
