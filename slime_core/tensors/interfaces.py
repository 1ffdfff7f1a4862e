"""The network interface of this machine that reaches another one. `meeting` and the engine `sglang` tell it to gloo and
NCCL, which else choose one by this machine's host name, and that often stands for a loopback address.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_SIOCGIFCONF, _ROOM, _ENTRY = 0x8912, 256, 40  # Linux on machines of 64 bits: its number, entries, bytes of an entry


def address_towards(host: str, port: int) -> str:
    """Return the address of this machine from which its packets to `host` leave, as the routing table says. Sends nothing.

    Raises:
        OSError: the name is not known, or there is no route.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as asked:
        asked.connect(target)
        return str(asked.getsockname()[0])


def addresses() -> list[tuple[str, str]]:
    """Return (interface, address) for every address of this machine; nothing on systems other than Linux."""
    found: list[tuple[str, str]] = []
    with suppress(ImportError, OSError):
        found += _version_4()
    with suppress(OSError):
        found += _version_6()
    return found


def announce_towards(host: str, port: int) -> tuple[str, str]:
    """Let gloo and NCCL in this process announce the interface from which packets to `host` leave, unless the environment names
    another one.

    Returns:
        (what is announced, in words; the address of it).

    Raises:
        OSError: the name is not known, there is no route, or the environment names an interface that this machine does not
            have.
    """
    address = address_towards(host, port)
    by_address = {address: name for name, address in reversed(addresses())}
    name = by_address.get("127.0.0.1" if ipaddress.ip_address(address).is_loopback else address)
    if name is not None:
        os.environ.setdefault(_NCCL, f"={name}")  # with "=" it is the whole name, not a beginning
    own = os.environ.get(_GLOO, "").split(",")[0]
    if not own:
        if name is not None:
            os.environ[_GLOO] = name
        return f"interface {name or 'unknown'}", address
    of_own = [address for interface, address in addresses() if interface == own]
    if not of_own:
        raise OSError(
            f"{_GLOO} is {own!r}, and this machine has no such interface with an address. Leave {_GLOO} out, and the interface "
            f"that reaches {host} is taken{f': {name}' if name else ''}."
        )
    return f"interface {own}, as {_GLOO} says", address if address in of_own else of_own[0]


def _version_4() -> Iterator[tuple[str, str]]:
    import fcntl

    entries = array("B", bytes(_ROOM * _ENTRY))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("iL", len(entries), entries.buffer_info()[0])
        used, _ = struct.unpack("iL", fcntl.ioctl(asked, _SIOCGIFCONF, request))
    for start in range(0, used, _ENTRY):
        entry = entries[start : start + _ENTRY].tobytes()
        yield entry[:16].split(b"\0")[0].decode(), socket.inet_ntoa(entry[20:24])


def _version_6() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, *_, name = line.split()
        yield name, str(ipaddress.IPv6Address(int(digits, 16)))
