"""`ControlClient`: the calls of a server's HTTP interface that control it: pause it, replace its weights, ask for its
state. Synchronous; used by the weight sender, in whatever process that runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from slime_engine_sglang.answers import parse_version
from slime_engine_sglang.errors import SGLangError, Unreachable, UnsupportedCall
from slime_engine_sglang.keys import NO_KEYS, Keys

CONTROL_TIMEOUT_S = 900.0
"""How many seconds a server may take to load or receive weights."""
_BODY_PART_BYTES = 1 << 20

Body = dict[str, Any] | bytes | None
"""The body of a request: what is sent as JSON, or that JSON itself."""


class ControlClient:
    """Calls one server.

    Args:
        url: the server's address.
        http: the connections, which `control_clients` closes.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url, self._http = url, http

    def version(self) -> int | None:
        """Return the version of the server's weights; None if it does not answer, or has weights that slime did not
        name."""
        for path in ("/model_info", "/get_model_info"):
            with contextlib.suppress(httpx.HTTPError):
                answer = self._http.get(self.url + path, timeout=10)
                if answer.status_code == 200:
                    return parse_version(answer.json().get("weight_version"))
        return None

    def answers(self) -> bool:
        """Return whether the server answers."""
        try:
            return self._http.get(f"{self.url}/model_info", timeout=10).status_code in (200, 404)
        except httpx.HTTPError:
            return False

    def call(self, path: str, body: Body = None, *, timeout: float = CONTROL_TIMEOUT_S) -> Any:
        """POST a request, and return the JSON of the response.

        Raises:
            UnsupportedCall: this version of SGLang has no such call.
            Unreachable: the server does not answer.
            SGLangError: the server refuses.
        """
        text = _as_json(body)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(text))}
        try:
            answer = self._http.post(self.url + path, content=_in_parts(text), headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            raise Unreachable(f"The SGLang server {self.url} did not answer {path}: {error!r}.") from error
        if answer.status_code == 404:
            raise UnsupportedCall(f"The SGLang server {self.url} knows no {path}.")
        said = _from_json(answer.text)
        if answer.status_code != 200 or (isinstance(said, dict) and said.get("success") is False):
            reason = said.get("message") or said.get("error") if isinstance(said, dict) else None
            raise SGLangError(
                f"The SGLang server {self.url} refused {path} ({answer.status_code}): {reason or answer.text[:500]}"
            )
        return said


@contextlib.contextmanager
def control_clients(urls: Sequence[str], keys: Keys = NO_KEYS) -> Iterator[list[ControlClient]]:
    """Return a context with the clients of several servers, whose connections are closed at its end."""
    # Weights come in bodies of hundreds of megabytes, so nothing about their transfer is bounded but the wait for an
    # answer.
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(CONTROL_TIMEOUT_S)
    with httpx.Client(timeout=timeout, limits=limits, verify=_certificates(), auth=keys) as http:
        yield [ControlClient(url, http) for url in urls]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates. They are kept, since reading them takes longer than a short call."""
    return httpx.create_ssl_context()


class PendingCalls:
    """The same call to several servers, under way. Made with `call_all`."""

    def __init__(self, work: Callable[[ControlClient], Any], servers: Sequence[ControlClient]) -> None:
        self._threads = ThreadPoolExecutor(max(1, len(servers)), thread_name_prefix="sglang-control")
        self._futures: dict[ControlClient, Future[Any]] = {c: self._threads.submit(work, c) for c in servers}
        self._threads.shutdown(wait=False)

    def check(self) -> None:
        """Raise the error of a call that has failed so far."""
        for future in self._futures.values():
            if future.done():
                future.result()

    def results(self) -> list[Any]:
        """Wait for all calls and return their results in the order of the servers; raise the error of one that
        failed."""
        return [future.result() for future in self._futures.values()]

    def errors(self) -> dict[ControlClient, BaseException | None]:
        """Wait for all calls and return each server's error, or None."""
        return {server: future.exception() for server, future in self._futures.items()}


def call_all(servers: Sequence[ControlClient], path: str, body: Body = None) -> PendingCalls:
    """Start the same call to all servers at the same time."""
    text = _as_json(body)
    return PendingCalls(lambda server: server.call(path, text), servers)


def as_json(body: dict[str, Any]) -> bytes:
    """Return the JSON of the body of a request."""
    return json.dumps(body).encode()


def _as_json(body: Body) -> bytes:
    return body if isinstance(body, bytes) else as_json(body or {})


def _in_parts(text: bytes) -> Iterator[bytes]:
    """Yield the body in parts. What is left of a part is copied each time that the network takes some of it; with a
    single part of hundreds of megabytes that would take most of the time."""
    return (text[start : start + _BODY_PART_BYTES] for start in range(0, len(text), _BODY_PART_BYTES))


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
