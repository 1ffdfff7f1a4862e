"""Server-sent events, and work that ends when the client that asked for it is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CLIENT_GONE = 499
"""The status of a request whose client did not wait for the answer. Nobody sees it."""
END = b"data: [DONE]\n\n"
"""The last event of a stream that went well."""

Result = TypeVar("Result")


def event(said: dict[str, Any]) -> bytes:
    """One object as an event of a stream."""
    return b"data: " + json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result | None:
    """Return what `work` returns; None where the client has gone before, and the work was cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


class EventStream(Response):
    """A stream of server-sent events. It ends, and so does what makes them, when the client goes."""

    media_type = "text/event-stream"

    def __init__(self, begin: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._begin, self._rest = begin, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_all() -> bool:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._begin, "more_body": True})
            async for event in self._rest:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return True

        try:
            if await unless_gone(receive, send_all()) is None:
                scope["state"]["gone"] = True
        finally:
            await self._rest.aclose()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
