"""`Notices`: what people should know of their files, said once per file. Called by the readers of data sets."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)


class Notices:
    """Remembers what was said of which file.

    Args:
        say: is given each sentence; by default it is logged as a warning.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda sentence: logger.warning("%s", sentence))
        self._told: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def columns(self, source: str, names: set[str]) -> None:
        """Say that nobody reads these columns of the row "file:row"."""
        self._unread(source, names, "column", "columns")

    def message_keys(self, source: str, names: set[str]) -> None:
        """Say that nobody reads these keys of messages in the row "file:row"."""
        self._unread(source, names, "key of messages", "keys of messages")

    def once(self, about: str, sentence: str) -> None:
        """Say a sentence, unless something was said about the same before."""
        if not self._told["", about]:
            self._told["", about].add(sentence)
            self._say(sentence)

    def _unread(self, source: str, names: Iterable[str], one: str, several: str) -> None:
        file = source.rpartition(":")[0]
        told = self._told[file, one]
        if not (new := set(names) - told):
            return
        told |= new
        listed = ", ".join(map(repr, sorted(new)))
        self._say(f"{file}: nothing reads the {one if len(new) == 1 else several} {listed} (first seen in {source}).")
