"""What becomes of an input that is read in a process of its own, and slime's command in this one."""

from __future__ import annotations

import faulthandler
import io
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 120, 4 << 30


def outcome(read: Callable[[], Any], seconds: int = SECONDS, memory: int = MEMORY) -> str:
    """Run `read` in a forked process, and return "read", "refused", or what went wrong."""
    from slime_core.errors import SlimeError

    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.close(there)
            faulthandler.disable()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory, resource.RLIM_INFINITY))
            warnings.simplefilter("ignore")
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                read()
            said = "read"
        except SlimeError:
            said = "refused"
        except BaseException:
            said = f"traceback\n{traceback.format_exc()[-3000:]}"
        finally:
            os.write(here, said.encode("utf-8", "backslashreplace")[:60_000])
            os._exit(0)
    os.close(here)
    with open(there, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else told or "an end without a word"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def slime(*words: str) -> int:
    """Run the command in this process, without its output."""
    from slime_core.cli import main

    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            status = main(list(words))
        except SystemExit as exit:
            status = int(exit.code or 0)
    if '  File "' in said.getvalue():  # of a plugin, whose part of a traceback is shown
        raise RuntimeError(said.getvalue())
    return status
