"""Runs coroutines from code that cannot await them, in an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

from slime_core.errors import PluginError

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end and return its result. For code outside of event loops, such as plain functions.

    Raises:
        PluginError: the caller is in an event loop, which would stand still meanwhile, and with it the engine that the coroutine
            may ask.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return result_of(coroutine)
    coroutine.close()
    raise PluginError(
        "slime.utils.async_utils.run was called in an event loop, which it would block; await the coroutine instead."
    )


def result_of(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that asks nothing of the caller's event loop to its end, and block until then."""
    return asyncio.run_coroutine_threadsafe(coroutine, background_loop()).result()


@cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The event loop on a thread of its own; one in a process, made when it is first needed."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="slime-compat", daemon=True).start()
    return loop
