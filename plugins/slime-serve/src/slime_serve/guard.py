"""`Guard`: who may ask, and the line of the log for each request."""

from __future__ import annotations

import hmac
import logging
import time
from ipaddress import ip_address
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from slime_serve.refusals import Refusal
from slime_serve.streaming import CLIENT_GONE

logger = logging.getLogger(__name__)


class Guard:
    """Stands before the application: who is not allowed to ask, or asks under a name that is not this server's, gets no further.

    Args:
        key: that requests must have; None: anybody may ask.
        loopback: only this machine reaches the server. Then it answers to names of this machine alone, so that a page of another
            site whose name leads here cannot ask for it.
    """

    def __init__(self, app: ASGIApp, key: str | None, loopback: bool) -> None:
        self._app, self._key, self._loopback = app, key, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request, began, status = Request(scope, receive), time.perf_counter(), 500

        async def noting(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        scope.setdefault("state", {})
        try:
            refusal = self._refusal(request)
            answer: ASGIApp = self._app if refusal is None else refused(refusal)
            await answer(scope, receive, noting)
        except ClientDisconnect:
            status = CLIENT_GONE
        finally:
            status = CLIENT_GONE if scope["state"].get("gone") else status
            _log(request, status, time.perf_counter() - began)

    def _refusal(self, request: Request) -> Refusal | None:
        if self._loopback and not is_loopback(_host_of(request)):
            return Refusal(
                403, f"This server answers to localhost, not to {_host_of(request)!r:.80}.", code="wrong_host"
            )
        if self._key is None or request.url.path == "/health":
            return None
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        problem = "is wrong" if given else "is missing: send the header `Authorization: Bearer KEY`"
        return Refusal(401, f"The API key {problem}.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as only this machine reaches it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, such as 127.example.com, which anybody may give to any address
        return False


def _host_of(request: Request) -> str:
    given = request.headers.get("host", "")
    name = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
    return name.lower()


def refused(refusal: Refusal) -> JSONResponse:
    """A refusal as it is sent."""
    return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)


def _log(request: Request, status: int, seconds: float) -> None:
    """One line for each request: what was asked, how it ended, how many tokens were read and generated. No text of it."""
    read, generated = request.scope.get("state", {}).get("tokens", (0, 0))
    what = f"{request.method} {request.url.path:.100}"
    tokens = f" {read} + {generated} tokens" if read else ""
    logger.info("%s %s%s %.2f s", what, "client gone" if status == CLIENT_GONE else status, tokens, seconds)
