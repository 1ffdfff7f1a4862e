"""What a person asks of a run while it goes on: to end (Ctrl-C, SIGTERM, a closed terminal), or to save now (`--save-trigger`). The
loop looks after every rollout."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from slime_core.errors import Terminated, WorkerDied
from slime_core.run.console import Console

_ONE_REQUEST_S = 0.1
"""GNU `timeout` and others send a signal to the process and to its group, within less than anybody presses Ctrl-C again."""


class Requests:
    """Asks of a run, heard within its `with` block. The first SIGINT, SIGTERM or SIGHUP lets a run that saves checkpoints finish the
    rollout that it is in, save and end; the second one ends it at once, but for SIGHUP: a terminal that is closed sends it more than
    once, and nobody asks again by it. A run that saves none ends with the first.

    Signals go to the main thread; a run in another one hears none.

    Args:
        saves: whether the run writes checkpoints.
        trigger: see `--save-trigger`.
    """

    def __init__(self, saves: bool, trigger: str | None, console: Console) -> None:
        self._saves, self._console = saves, console
        self._trigger = Path(trigger) if trigger else None
        self._received: int | None = None
        self._heard = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Requests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._received is not None and isinstance(error, WorkerDied):
            name = signal.Signals(self._received).name
            error.add_note(f"{name} had asked the run to end before: it may have been sent to that process, too.")
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def end(self) -> bool:
        """Whether the run is to save and end after the rollout that it is in."""
        return self._received is not None

    def raise_if_ended(self) -> None:
        """Raises:
        KeyboardInterrupt: somebody asked the run to end, and it has; a `Terminated` after the other signals.
        """
        if self._received is not None:
            raise _of(self._received)

    def take_save(self) -> bool:
        """Whether somebody asks for a checkpoint now. The file that says so is removed, and may be made again."""
        if self._trigger is None or not self._trigger.exists():
            return False
        try:
            self._trigger.unlink(missing_ok=True)
        except OSError as error:  # it would ask again after every rollout
            why = error.strerror or str(error)
            self._console.say(
                f"--save-trigger {self._trigger} cannot be removed ({why}): a checkpoint is written, and it is not looked at again"
            )
            self._trigger = None
        return True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and (number == signal.SIGHUP or time.monotonic() - self._heard < _ONE_REQUEST_S):
            return
        if not self._saves or self._received is not None:
            raise _of(number)
        self._received, self._heard = number, time.monotonic()
        again = "Ctrl-C" if number == signal.SIGINT else "another signal"
        text = f"{signal.Signals(number).name}: the run ends after this rollout, with a checkpoint; {again} ends it at once"
        # A signal may come while this thread writes to the very stream, which Python refuses to enter twice; another thread waits.
        threading.Thread(target=self._console.say, args=(text,)).start()


def _of(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
