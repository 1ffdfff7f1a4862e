"""The server around the application: its socket, the signals that end it, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from slime_core.errors import ArgumentError

BACKLOG = 1024
"""Connections that may wait to be accepted."""
ENDING = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that what is wrong with the address is known before a model is loaded.

    Raises:
        ArgumentError: the address is not of this machine, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ArgumentError(f"--host {host}: there is no such address: {error.strerror or error}.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ArgumentError(
            f"Nothing can listen on --host {host} --port {port}: {error.strerror or error}. Choose another port, or --port 0 for a free "
            "one."
        ) from None
    return listening


class Server(uvicorn.Server):
    """Serves until Ctrl-C or SIGTERM. Then no more requests are taken, and running ones have some seconds to be finished in; a second
    signal cuts them off.

    Args:
        patience: the seconds.
        on_end: is called when the end begins.
    """

    def __init__(self, app: ASGIApp, patience: int, on_end: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=patience,
            )
        )
        self._on_end = on_end

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a signal, and take it for dealt with then."""
        loop = asyncio.get_running_loop()
        try:
            for number in ENDING:
                loop.add_signal_handler(number, self.handle_exit, number, None)
        except (ValueError, RuntimeError):  # not in the main thread, where nobody gets signals
            yield
            return
        try:
            yield
        finally:
            for number in ENDING:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_end()
