"""Runs one command and ends it, with all processes that it started, when the process that started the guard has ended.

`process.ChildProcess` runs it as a program: `python guard.py COMMAND…`. Its standard input is a pipe from the parent,
which the operating system closes when the parent ends, in whatever way. Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 3.0
"""How many seconds the command has to end by itself."""
_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run the command and return its exit status."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_guard() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_guard)
    print(f"slime: process {child.pid}: {' '.join(command)}", flush=True)

    def wait_for_the_end_of_the_parent() -> None:
        while os.read(0, 4096):
            pass
        child.terminate()
        time.sleep(GRACE_S)
        _kill(child.pid)

    threading.Thread(target=wait_for_the_end_of_the_parent, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides when to end
    status = child.wait()
    _kill(child.pid)
    return status if status >= 0 else 128 - status


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
