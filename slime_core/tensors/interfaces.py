"""The network interface of this machine that reaches another one. `meeting` and the engine `sglang` tell it to gloo and
NCCL, which else choose one by this machine's host name, and that often stands for a loopback address. And the settings of NCCL
that training ranks have in common with an engine's servers.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_WITH_SERVERS = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}
"""SGLang sets them so in its servers, and NCCL needs them alike in all processes of a group."""
_SIOCGIFCONF, _ROOM, _ENTRY = 0x8912, 256, 40  # Linux on machines of 64 bits: its number, entries, bytes of an entry


def variables_with_servers() -> dict[str, str]:
    """Return the environment variables with which NCCL, in a training rank, forms groups with an engine's servers, at the values
    of this process's environment where it has them. NCCL reads them once in a process."""
    return {name: os.environ.get(name, value) for name, value in _WITH_SERVERS.items()}


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


def variables_towards(host: str, port: int) -> dict[str, str]:
    """Return the environment variables by which gloo and NCCL announce the interface from which packets to `host` leave: none
    where that is unknown, or where the user's environment names another one. `host` may be an address of this machine,
    and then it is the interface that has it.

    Raises:
        OSError: the name is not known, or there is no route.
    """
    name = _interface_of(address_towards(host, port))
    found = {} if name is None else {_GLOO: name, _NCCL: f"={name}"}  # with "=" it is the whole name, not a beginning
    return {variable: value for variable, value in found.items() if not _of_user(variable)}


@contextmanager
def announcing_towards(host: str, port: int) -> Iterator[None]:
    """Return a context in which gloo, in this process, announces the interface from which packets to `host` leave, unless the
    user's environment names another one. NCCL connects later, and reads its variable once in a process: what it is told stays,
    unless it was told before.

    Raises:
        OSError: as for `variables_towards`.
    """
    variables = variables_towards(host, port)
    if _NCCL in variables and not os.environ.get(_NCCL):
        os.environ[_NCCL] = _chosen[_NCCL] = variables[_NCCL]
    before = os.environ.get(_GLOO)
    os.environ.update({name: value for name, value in variables.items() if name == _GLOO})
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_GLOO, None)
        else:
            os.environ[_GLOO] = before


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
    name = _interface_of(address)
    own = os.environ.get(_GLOO, "").split(",")[0] if _of_user(_GLOO) else ""
    chosen = variables_towards(host, port)
    _chosen.update(chosen)
    os.environ.update(chosen)
    if not own:
        return f"interface {name or 'unknown'}", address
    of_own = [address for interface, address in addresses() if interface == own]
    if not of_own:
        raise OSError(
            f"{_GLOO} is {own!r}, and this machine has no such interface with an address. Leave {_GLOO} out, and the interface "
            f"that reaches {host} is taken{f': {name}' if name else ''}."
        )
    return f"interface {own}, as {_GLOO} says", address if address in of_own else of_own[0]


_chosen: dict[str, str] = {}
"""What `announce_towards` has set, which is not the user's choice."""


def _of_user(variable: str) -> bool:
    """Whether the user has set it."""
    value = os.environ.get(variable)
    return bool(value) and value != _chosen.get(variable)


def _interface_of(address: str) -> str | None:
    """The interface of this machine that has the address; None where it is unknown."""
    by_address = {address: name for name, address in reversed(addresses())}
    return by_address.get("127.0.0.1" if ipaddress.ip_address(address).is_loopback else address)


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
