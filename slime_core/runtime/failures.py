"""`Failure`: an error on its way from a worker process to the driver, where it is raised with its type, text and notes."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from pathlib import Path

from slime_core.errors import SlimeError
from slime_core.plugins.selection import RaisedIn, raised_in

_CORE = str(Path(__file__).parent.parent)


@dataclass(frozen=True)
class Failure:
    """An error packed as plain data, so that it arrives whatever the error was.

    Attributes:
        pickled: the error with its notes; b"" where it cannot be pickled.
        text: its type and message.
        notes, components: that it carried.
        expected: it is a `SlimeError`, so it explains itself.
    """

    pickled: bytes
    text: str
    notes: tuple[str, ...]
    components: tuple[RaisedIn, ...]
    expected: bool

    @classmethod
    def of(cls, error: BaseException, who: str) -> Failure:
        """Pack an error in the worker `who`. One that does not explain itself gets a note with its frames."""
        expected = isinstance(error, SlimeError)
        if not expected:
            error.add_note(f"in the {who}:\n{_frames(error)}")
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:
            pickled = b""
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        return cls(pickled, text, tuple(getattr(error, "__notes__", ())), raised_in(error), expected)

    def error(self) -> BaseException:
        """Unpack the error. Where its class does not exist in this process, it becomes one with the same text."""
        try:
            original: BaseException = pickle.loads(self.pickled)
            return original
        except Exception:
            error: Exception = (SlimeError if self.expected else RuntimeError)(self.text)
            for note in self.notes:
                error.add_note(note)
            error.slime_raised_in = self.components  # type: ignore[attr-defined]
            return error


def _frames(error: BaseException) -> str:
    """The traceback's frames as text; those outside the core alone, if the error came through somebody's component."""
    frames = list(traceback.extract_tb(error.__traceback__))
    if raised_in(error):
        frames = [frame for frame in frames if not frame.filename.startswith(_CORE)] or frames
    return "".join(traceback.format_list(frames)).rstrip()
