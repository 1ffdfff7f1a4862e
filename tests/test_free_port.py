"""A port that is kept is given to nobody who asks for some port, and to whoever asks for it by its number."""

from __future__ import annotations

import gc
import socket
import struct

import pytest

from slime_core.free_port import FreePort

LOCAL_PORT_RANGE = 51  # IP_LOCAL_PORT_RANGE of linux/in.h, which Python does not name: since Linux 6.3


def asks_for_some_port(number: int) -> socket.socket:
    """A socket for which the system has this port alone to give."""
    asking = socket.socket()
    try:
        asking.setsockopt(socket.IPPROTO_IP, LOCAL_PORT_RANGE, struct.pack("HH", number, number))
    except OSError:
        asking.close()
        pytest.skip("this system does not let a socket choose its range of ports")
    return asking


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("reuse", [False, True])
def test_nobody_gets_a_kept_port_by_chance(host: str, reuse: bool) -> None:
    port = FreePort(host)
    for _ in range(2):
        with asks_for_some_port(port.number) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            with pytest.raises(OSError, match="in use"):
                asking.bind(("127.0.0.1", 0))
    number = port.number
    del port
    gc.collect()
    with asks_for_some_port(number) as asking:
        asking.bind(("127.0.0.1", 0))
        assert asking.getsockname()[1] == number


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_nobody_goes_out_by_a_kept_port(host: str) -> None:
    """Connections are given ports of the same range; and one to its own port would be answered by itself."""
    port = FreePort(host)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for goal in (listening.getsockname()[1], port.number):
            with asks_for_some_port(port.number) as asking, pytest.raises(OSError, match="assign requested address"):
                asking.connect(("127.0.0.1", goal))


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_who_is_told_its_number_listens_on_it_as_often_as_needed(host: str) -> None:
    port = FreePort(host)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.number))
        with socket.create_server(("127.0.0.1", port.number)):
            socket.create_connection(("127.0.0.1", port.number)).close()
    port.close()
    socket.create_server(("127.0.0.1", port.number)).close()


def test_an_address_that_this_machine_does_not_have_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        FreePort("203.0.113.1")
