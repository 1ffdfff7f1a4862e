"""Ports for processes that do not listen yet: where the training ranks are to meet, and those of the engine's servers, which are
told their ports when they are started and listen when they have loaded a model, minutes later."""

from __future__ import annotations

import socket
import weakref


class FreePort:
    """A port of this machine on which nothing listens, kept free for whoever is told its number.

    A socket that is bound to it and does not listen keeps the system from giving it to anybody who asks for some port. Who asks
    for this number may listen on it, with SO_REUSEADDR, which servers set. It is given up with this object.

    Args:
        host: the address on which somebody is to listen; "": on all addresses of IPv4.

    Raises:
        OSError: the host has no such address, or no port is free.
    """

    def __init__(self, host: str) -> None:
        family = socket.getaddrinfo(host or "0.0.0.0", 0, type=socket.SOCK_STREAM)[0][0]
        keeping = socket.socket(family, socket.SOCK_STREAM)
        self.close = weakref.finalize(self, keeping.close)
        """Give the port up before this object goes."""
        keeping.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeping.bind((host, 0))
        self.number = int(keeping.getsockname()[1])
