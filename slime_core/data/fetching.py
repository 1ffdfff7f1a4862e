"""`fetched`: what an address answers, within a time and a size that hold whatever the other side does."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Lock, Timer
from typing import Any
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    UnknownHandler,
)


def fetched(url: str, most: int, seconds: float) -> bytes:
    """Return what an address (http, https) answers, the first `most` bytes of it. Redirects are followed to such addresses.

    Args:
        seconds: for everything together. A timeout of a socket bounds each wait alone, and whoever sends a byte now and then passes it.

    Raises:
        OSError, ValueError, HTTPException: it answers with an error, not at all, or not in time.
    """
    connections = _Connections()
    timer = Timer(seconds, connections.end)
    timer.daemon = True
    timer.start()
    try:
        with _opener(connections).open(url, timeout=seconds) as answer:
            data = bytes(answer.read(most))
    except (OSError, ValueError, HTTPException):
        if not connections.are_over:
            raise
    finally:
        timer.cancel()
        connections.close()
    if connections.are_over:
        raise TimeoutError(f"it took more than {seconds:g} s")
    return data


class _Connections:
    """The connections of one fetch, which can be ended from another thread."""

    def __init__(self) -> None:
        self.are_over = False
        self._sockets: list[socket.socket] = []
        self._lock = Lock()

    def add(self, connected: socket.socket) -> None:
        # Of its own, since the connection may close its socket while another thread ends it.
        own = socket.socket(fileno=os.dup(connected.fileno()))
        with self._lock:
            self._sockets.append(own)
        if self.are_over:
            self.end()

    def end(self) -> None:
        self.are_over = True
        with self._lock:
            for own in self._sockets:
                with suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            for own in self._sockets:
                own.close()


def _opener(connections: _Connections) -> OpenerDirector:
    class Http(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            connections.add(self.sock)

    class Https(HTTPSConnection):
        def connect(self) -> None:
            super().connect()  # the handshake as a whole is within the timeout
            connections.add(self.sock)

    class OpenHttp(HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(Http, req)

    class OpenHttps(HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(Https, req)

    opener = OpenerDirector()
    kinds = (
        ProxyHandler,
        UnknownHandler,
        OpenHttp,
        OpenHttps,
        HTTPDefaultErrorHandler,
        HTTPRedirectHandler,
        HTTPErrorProcessor,
    )
    for kind in kinds:
        opener.add_handler(kind())
    return opener
