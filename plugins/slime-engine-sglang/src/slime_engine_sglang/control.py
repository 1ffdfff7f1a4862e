"""What a server is asked besides generating: pausing, taking over weights, saying what it has. Synchronous; used by the
weight sender, in whatever process that runs.
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

from slime_engine_sglang.answers import as_version
from slime_engine_sglang.errors import SGLangError

PATIENCE_S = 900.0
"""How long a server may take to load or receive weights."""
_CHUNK = 1 << 20


class Control:
    """The control side of one server. Closed with `close`; methods raise `SGLangError` if the server says no and
    `Gone` if it does not answer."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url, self._http = url, http

    def version(self) -> int | None:
        """The version of its weights; None when it does not answer, or has weights that slime did not name."""
        for path in ("/model_info", "/get_model_info"):
            with contextlib.suppress(httpx.HTTPError):
                answer = self._http.get(self.url + path, timeout=10)
                if answer.status_code == 200:
                    return as_version(answer.json().get("weight_version"))
        return None

    def answers(self) -> bool:
        """Whether it can be asked anything."""
        try:
            return self._http.get(f"{self.url}/model_info", timeout=10).status_code in (200, 404)
        except httpx.HTTPError:
            return False

    def ask(self, path: str, body: dict[str, Any] | bytes | None = None, *, timeout: float = PATIENCE_S) -> Any:
        """POST, and the JSON of the answer.

        Args:
            body: what is sent as JSON, or that JSON.

        Raises:
            Unsupported: this version of SGLang has no such call.
            Gone: no answer.
            SGLangError: the server refuses.
        """
        text = body if isinstance(body, bytes) else as_json(body or {})
        headers = {"Content-Type": "application/json", "Content-Length": str(len(text))}
        try:
            answer = self._http.post(self.url + path, content=_chunks(text), headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            raise Gone(f"The SGLang server {self.url} did not answer {path}: {error!r}.") from error
        if answer.status_code == 404:
            raise Unsupported(f"The SGLang server {self.url} knows no {path}.")
        said = _json(answer.text)
        if answer.status_code != 200 or (isinstance(said, dict) and said.get("success") is False):
            reason = said.get("message") or said.get("error") if isinstance(said, dict) else None
            raise SGLangError(
                f"The SGLang server {self.url} refused {path} ({answer.status_code}): {reason or answer.text[:500]}"
            )
        return said


class Gone(SGLangError):
    """A server does not answer."""


class Unsupported(SGLangError):
    """A server is too old, or too new, for a call."""


@contextlib.contextmanager
def controls(urls: Sequence[str]) -> Iterator[list[Control]]:
    """The control sides of several servers."""
    # Weights come in bodies of hundreds of megabytes, so nothing about their transfer is bounded but the wait for an answer.
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=httpx.Timeout(PATIENCE_S), limits=limits, verify=_certificates()) as http:
        yield [Control(url, http) for url in urls]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Kept, since reading them takes longer than telling a server something."""
    return httpx.create_ssl_context()


class Asked:
    """One call to all servers, under way. Made with `ask_all`."""

    def __init__(self, work: Callable[[Control], Any], servers: Sequence[Control]) -> None:
        self._threads = ThreadPoolExecutor(max(1, len(servers)), thread_name_prefix="sglang-control")
        self._futures: dict[Control, Future[Any]] = {c: self._threads.submit(work, c) for c in servers}
        self._threads.shutdown(wait=False)

    def check(self) -> None:
        """Raise what a server that has answered so far raised."""
        for future in self._futures.values():
            if future.done():
                future.result()

    def results(self) -> list[Any]:
        """All answers, in the order of the servers; raises what one of them raised."""
        return [future.result() for future in self._futures.values()]

    def outcomes(self) -> dict[Control, BaseException | None]:
        """What each server raised, or None, when all have answered."""
        return {control: future.exception() for control, future in self._futures.items()}


def ask_all(servers: Sequence[Control], path: str, body: dict[str, Any] | bytes | None = None) -> Asked:
    """Ask all servers the same at the same time."""
    text = body if isinstance(body, bytes) else as_json(body or {})
    return Asked(lambda control: control.ask(path, text), servers)


def as_json(body: dict[str, Any]) -> bytes:
    """The body of a request."""
    return json.dumps(body).encode()


def _chunks(text: bytes) -> Iterator[bytes]:
    """In parts, since what is left of a part is copied each time that the network takes some of it: of hundreds of
    megabytes in one part that would be most of the time."""
    return (text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
