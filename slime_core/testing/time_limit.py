"""`in_time`: other people's code, given up on when it hangs."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from slime_core.testing.subject import ContractError

TIME_LIMIT = 60.0
"""Seconds for one check, unless told otherwise."""

GIVEN_UP: list[threading.Thread] = []
"""Threads that did not end in time."""

T = TypeVar("T")


class Hangs(ContractError):
    """Something did not come to an end."""


def in_time(work: Callable[[], T], seconds: float) -> T:
    """Call `work` and return what it returns, or raise what it raises.

    It runs on a daemon thread. One that hangs cannot be stopped, but neither the caller nor the end of the process
    waits for it.

    Raises:
        Hangs: it has not ended after `seconds`; the message says where it is.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    thread = threading.Thread(target=run, name="slime-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if not future.done():
        GIVEN_UP.append(thread)
        raise Hangs(
            f"it did not come to an end within {seconds:g} s. It is in {_place(thread)}. If it only needs longer, "
            "allow it more: slime plugins check --time-limit SECONDS, or time_limit=… in check_component."
        )
    return future.result()


def _place(thread: threading.Thread) -> str:
    """Return the innermost line that a thread is in, if possible of code that is neither slime's nor Python's."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame else []
    own = [f for f in stack if "/slime_core/" not in f.filename and f"{sys.base_prefix}/lib" not in f.filename]
    innermost = (own or stack)[-1:]
    return f"{innermost[0].filename}, line {innermost[0].lineno}" if innermost else "no Python code"
