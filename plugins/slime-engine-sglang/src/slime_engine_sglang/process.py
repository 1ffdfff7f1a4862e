"""`ChildProcess`: a program that a run starts, with a log of its own. It ends when it is closed, and when the run ends,
in whatever way.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_engine_sglang import guard

TAIL_LINES = 25
"""How many lines of a log error messages show."""


class ChildProcess:
    """A running program.

    Args:
        command: the command line.
        log: the file that gets what the program prints.
        env: environment variables in which it differs from this process.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """The exit status of a program that has ended; None while it runs."""
        return self._guard.poll()

    def close(self) -> None:
        """End the program and all processes that it started."""
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(timeout=2 * guard.GRACE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # the program goes with it
            self._guard.wait()


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 200 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({log} cannot be read: {error})"
