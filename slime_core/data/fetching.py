"""`fetched`: what an address answers, within a time and a size that hold whatever the other side does."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Lock, Timer
from typing import Any, cast
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
        seconds: for everything together but the question to the name server. A timeout of a socket bounds each wait alone, and whoever
            sends a byte now and then passes it.

    Raises:
        OSError, ValueError, HTTPException: it answers with an error, not at all, or not in time.
    """
    connections = _Connections(seconds)
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

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._lock = Lock()

    @property
    def are_over(self) -> bool:
        """Whether their time is, whoever notices first: a socket that has waited for all of it, or the timer."""
        return time.monotonic() >= self._end

    def connect(self, address: tuple[str, int], *_others: Any) -> socket.socket:
        """A connection to a host, in place of `socket.create_connection`, which gives each of its addresses the whole time. It can be
        ended before a proxy has answered and keys are exchanged."""
        failed = OSError(f"{address[0]} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            if (left := self._end - time.monotonic()) <= 0:
                break
            one = socket.socket(family, kind, protocol)
            one.settimeout(left)
            try:
                one.connect(place)
            except OSError as error:
                failed = error
                one.close()
            else:
                self._add(one)
                return one
        raise failed

    def _add(self, connected: socket.socket) -> None:
        # Of its own, since the connection may close its socket while another thread ends it.
        own = socket.socket(fileno=os.dup(connected.fileno()))
        with self._lock:
            self._sockets.append(own)
        if self.are_over:
            self.end()

    def end(self) -> None:
        with self._lock:
            for own in self._sockets:
                with suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            for own in self._sockets:
                own.close()


def _opener(connections: _Connections) -> OpenerDirector:
    def made_by(kind: type[HTTPConnection]) -> Any:
        def made(*args: Any, **kwargs: Any) -> HTTPConnection:
            connection: Any = kind(*args, **kwargs)
            connection._create_connection = connections.connect
            return cast(HTTPConnection, connection)

        return made

    class OpenHttp(HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(made_by(HTTPConnection), req)

    class OpenHttps(HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(made_by(HTTPSConnection), req)

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
