"""A grading process: `python -m slime_rewards.worker MODULE:FUNCTION SECONDS`. Started by `slime_rewards.pool`.

It imports the function, says `ready`, and answers one line of JSON (the function's arguments) with another one
(`{"result": …}` or `{"error": …}`) until its input ends, so it ends with the process that started it.

The kernel ends it, through a timer with its default action, when one call exceeds the limit. No other means stops a
computation inside a C function (such as the power 9^(9^9)), and this one works even when the parent is gone. What is
limited is processor time, so that a reward does not depend on how busy the machine is; a call that only waits ends
after `PATIENCE` times as long.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

START_SECONDS = 120.0
"""Limit for the imports, which do not count as grading."""
PATIENCE = 10
"""A call may wait so many times as long as it may compute."""
MEMORY = 4 << 30
"""Bytes of address space; an expression that needs more is an error of that answer."""


def main(target: str, seconds: float) -> None:
    """Answer calls of the function `target` until standard input ends, each within `seconds` of processor time."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    logging.disable(logging.CRITICAL)
    for ending in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(ending, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGPROF})
    signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        _send(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _limit(0)
    _send(answers, {"result": "ready"})
    for line in sys.stdin.buffer:
        _limit(seconds)
        answer = _answer(function, json.loads(line))
        _limit(0)
        _send(answers, answer)


def _limit(seconds: float) -> None:
    """Let the kernel end this process after so many seconds of processor time from now on; 0 takes the limit away."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)


def _answer(function: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
    """Call the function; return its result, or what it raised."""
    try:
        return {"result": function(*arguments)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    """Write one line of JSON."""
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
