"""Addresses are fetched within a time and a size, whatever the other side does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from urllib.error import URLError

import pytest

from slime_core.data.fetching import fetched


@contextmanager
def answering(parts: list[bytes], pause: float = 0.0) -> Iterator[str]:
    """The address of a server that answers every request with these bytes, one after the other with pauses between them."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client, contextlib.suppress(OSError):
                        client.recv(4096)
                        for part in parts:
                            client.sendall(part)
                            if ended.wait(pause):
                                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        finally:
            ended.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert not thread.is_alive()


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
SLOW = {
    "silent": [*repeat(b"", 100)],
    "drips its status": [b"H", b"T", b"T", b"P", *repeat(b"/", 100)],
    "drips its headers": [HEAD, *repeat(b"X: y\r\n", 90)],
    "drips one header": [HEAD, b"X: ", *repeat(b"y", 100)],
    "drips its body": [HEAD + b"Content-Length: 1000\r\n\r\n", *repeat(b"x", 100)],
    "drips a body without length": [HEAD + b"\r\n", *repeat(b"x", 100)],
    "drips chunks": [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *repeat(b"1\r\nx\r\n", 100)],
}


@pytest.mark.parametrize("name", SLOW)
def test_a_server_that_takes_its_time_holds_nobody_longer_than_said(name: str) -> None:
    with answering(SLOW[name], pause=0.1) as url:
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"it took more than 0\.6 s"):
            fetched(url, 1 << 20, 0.6)
        assert time.monotonic() - begun < 4


@pytest.mark.parametrize("who", ["timer", "socket"])
def test_whoever_notices_first_that_the_time_is_over_says_so(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if who == "timer":
        monkeypatch.setattr(socket.socket, "settimeout", lambda self, seconds: None)
    else:
        monkeypatch.setattr("slime_core.data.fetching.Timer", lambda seconds, end: threading.Timer(60, end))
    with answering(SLOW["silent"], pause=0.1) as url, pytest.raises(TimeoutError, match=r"it took more than 0\.6 s"):
        fetched(url, 100, 0.6)


def test_a_proxy_that_takes_its_time_holds_nobody_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering([b"H", b"T", *repeat(b"T", 100)], pause=0.1) as proxy:
        monkeypatch.setenv("https_proxy", proxy.removesuffix("/a.png"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"it took more than 0\.6 s"):
            fetched("https://example.com/a.png", 100, 0.6)
        assert time.monotonic() - begun < 4


def test_all_addresses_of_a_host_have_the_time_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, contextlib.ExitStack() as waiting:
        for _ in range(4):  # the queue of those that are not accepted is full then
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(deaf.getsockname())
        place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", deaf.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [place] * 6)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"it took more than 0\.6 s"):
            fetched("http://example.com/a.png", 100, 0.6)
        assert time.monotonic() - begun < 3


def test_the_first_bytes_of_what_never_ends_are_returned() -> None:
    with answering([HEAD + b"\r\n", *repeat(b"x" * 65536, 1000)]) as url:
        assert fetched(url, 100_000, 20) == b"x" * 100_000


def test_what_is_there_is_fetched_also_behind_a_redirect() -> None:
    with (
        answering([HEAD + b"Content-Length: 4\r\n\r\nbody"]) as there,
        answering([HEAD.replace(b"200 OK", b"302 Found") + f"Location: {there}\r\n\r\n".encode()]) as here,
    ):
        assert fetched(there, 100, 20) == fetched(here, 100, 20) == b"body"


@pytest.mark.parametrize(
    "status",
    ["404 Not Found", "302 Found\r\nLocation: ftp://127.0.0.1/a", "302 Found\r\nLocation: file:///etc/hostname"],
)
def test_errors_and_redirects_elsewhere_are_errors(status: str) -> None:
    with answering([HEAD.replace(b"200 OK", status.encode()) + b"\r\n"]) as url, pytest.raises(URLError):
        fetched(url, 100, 20)
