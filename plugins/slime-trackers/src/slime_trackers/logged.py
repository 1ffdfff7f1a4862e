"""Which steps a service has already, kept in the run directory: a resumed run repeats steps, which would otherwise appear twice there.
Used by the trackers of services that cannot replace what they have."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_core.errors import DataError, PluginError
from slime_core.output import writing
from slime_core.plain import read_json
from slime_core.secrets import masked
from slime_core.whole_file import write_whole


class Logged:
    """The id of a run at a service and the last step that was logged, as a small file.

    Args:
        file: in the run directory.
        config: the resolved run. Its `resume_after` is the last rollout that a resumed run has behind it, or None in a new run, which
            takes no note of what an earlier run left. Nor does one that `branches` and repeats steps: their numbers may be others.
        new_id: of a new run.

    Raises:
        PluginError: a resumed run cannot read the file.
    """

    def __init__(self, file: Path, config: dict[str, Any], new_id: str) -> None:
        resumed = config.get("resume_after") is not None and file.exists()
        previous = _read(file) if resumed else {}
        last = previous.get("last_step")
        if config.get("branches") and last is not None and last > config["resume_after"]:
            previous = {}
        self._file = file
        self.resumed = bool(previous)
        self.id: str = previous.get("id", new_id)
        self._last: int | None = previous.get("last_step")
        self._last_names: list[str] = previous.get("last_names", [])
        self._known_last, self._known_names = self._last, frozenset(self._last_names)

    def new(self, metrics: dict[str, float], step: int) -> dict[str, float]:
        """Those of the metrics of a step that the service does not have."""
        if self._known_last is None or step > self._known_last:
            return metrics
        if step < self._known_last:
            return {}
        return {name: value for name, value in metrics.items() if name not in self._known_names}

    def note(self, metrics: dict[str, float], step: int) -> None:
        """These metrics of a step have been logged."""
        self._last_names = [*(self._last_names if step == self._last else []), *metrics]
        self._last = step
        self.remember()

    def remember(self) -> None:
        """Write the id and what was logged last into the run directory."""
        state = {"id": self.id, "last_step": self._last, "last_names": self._last_names}
        with writing("What was logged last", self._file):
            write_whole(self._file, json.dumps(state))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file.read_text(encoding="utf-8"))
        if not _is_state(found):
            raise DataError("it has not what a run writes there")
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise PluginError(
            f"{file} is damaged: {error}. It holds the run of the service that goes on, and the last step that this has. Restore it, or "
            "remove it to begin another run there, which then has the steps from here on."
        ) from None
    return dict(found)


def _is_state(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        return False
    last, names = found.get("last_step"), found.get("last_names")
    return type(last) in (int, type(None)) and isinstance(names, list) and all(isinstance(name, str) for name in names)


@contextmanager
def hidden_from_command_line() -> Iterator[None]:
    """Mask secrets on the command line meanwhile: packages store the command line with the run."""
    given = sys.argv
    sys.argv = [masked(word) for word in given]
    try:
        yield
    finally:
        sys.argv = given
