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
MOST_BYTES_WITH_IMAGES = 96 << 20
"""Bytes of a body that may have images: in base64, one as large as rows of data may have it (64 MiB)."""
MOST_SECONDS = 30.0
"""Within which a body must have come."""


async def read_body(request: Request, most: int = MOST_BYTES) -> Any:
    """Return what the body says.

    Args:
        most: bytes that it may have.

    Raises:
        Refusal: it is no JSON in UTF-8, or too large, or does not come.
        ClientDisconnect: nobody is there any more.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no page of another site may send without being asked first
        raise Refusal(415, f"The body is of the type {kind[:80]!r}; expected application/json.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_large(most)
    try:
        async with asyncio.timeout(MOST_SECONDS):
            data = await _collected(request, most)
    except TimeoutError:
        raise Refusal(408, f"The body did not come within {MOST_SECONDS:.0f} seconds.") from None
    try:
        return read_json(data.decode())
    except UnicodeDecodeError as error:
        raise wrong(f"The body is not valid UTF-8 at byte {error.start}.") from None
    except DataError as error:
        raise wrong(f"The body is no JSON that can be used: {error}.") from None


async def _collected(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body has more than {most} bytes ({most >> 20} MiB).", headers={"Connection": "close"})
