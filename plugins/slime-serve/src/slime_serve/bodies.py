"""`read_body`: the JSON of a request, in bounded size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from slime_core.errors import DataError
from slime_core.plain import read_json
from slime_serve.refusals import Refusal, wrong

MOST_BYTES = 8 << 20
"""Bytes that a body may have. A context of 128 thousand tokens has about half a million."""
MOST_SECONDS = 30.0
"""Within which a body must have come."""


async def read_body(request: Request) -> Any:
    """Return what the body says.

    Raises:
        Refusal: it is no JSON in UTF-8, or too large, or does not come.
        ClientDisconnect: nobody is there any more.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no page of another site may send without being asked first
        raise Refusal(415, f"The body is of the type {kind[:80]!r}; expected application/json.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            data = await _collected(request)
    except TimeoutError:
        raise Refusal(408, f"The body did not come within {MOST_SECONDS:.0f} seconds.") from None
    try:
        return read_json(data.decode())
    except UnicodeDecodeError as error:
        raise wrong(f"The body is not valid UTF-8 at byte {error.start}.") from None
    except DataError as error:
        raise wrong(f"The body is no JSON that can be used: {error}.") from None


async def _collected(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise _too_large()
        parts.append(part)
    return b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"The body has more than {MOST_BYTES} bytes (8 MiB).", headers={"Connection": "close"})
