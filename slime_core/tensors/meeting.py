"""How the training ranks meet: each finds rank 0 at MASTER_ADDR:MASTER_PORT, tells the others where it is, and tries whether
it reaches the other machines. Called by `ranks`, before gloo and NCCL connect, who would wait for minutes and name nobody.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # torch documents them under these names

from slime_core.errors import ClusterError
from slime_core.tensors.interfaces import address_towards, announce_towards

logger = logging.getLogger(__name__)

_CONNECT_S = 4.0
"""How long another machine may take to accept a connection."""
_PAUSE_S, _NOTICE_S = 0.1, 30.0
"""Between two tries; and how long rank 0 may be on its way before it is said that it is waited for."""


@dataclass(frozen=True)
class _Whereabouts:
    """Where a rank is: its process, its machine (the address towards rank 0), what it announces to the others, and a port on
    which it listens while they meet."""

    rank: int
    pid: int
    machine: str
    interface: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"training rank {self.rank} (process {self.pid} on {self.machine})"


class Meeting:
    """The meeting of `size` training ranks, seen by one of them.

    Args:
        host, port: where rank 0 waits.
        timeout_minutes: how long the others may take to come.
    """

    def __init__(self, rank: int, size: int, host: str, port: int, timeout_minutes: float) -> None:
        self._rank, self._size, self._host, self._port = rank, size, host, port
        self._minutes = timeout_minutes
        self._started = time.monotonic()
        self._deadline = self._started + 60 * timeout_minutes

    def hold(self) -> Store:
        """Meet the other ranks, and return the store through which they go on to find each other.

        Raises:
            ClusterError: rank 0 cannot be reached, ranks did not come in time, or two machines do not reach each other. Names
                rank, process, machine, port, and the time that it took.
        """
        try:
            interface, address = announce_towards(self._host, self._port)
        except OSError as error:
            raise self.failed(f"{_in_words(error)}.") from error
        store = self._store()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family, backlog=max(128, self._size)) as listening:
            free = int(listening.getsockname()[1])
            own = _Whereabouts(
                self._rank, os.getpid(), address_towards(self._host, self._port), interface, address, free
            )
            everybody = [
                _Whereabouts(**json.loads(text)) for text in self._exchange(store, "where", json.dumps(asdict(own)))
            ]
            problems = self._exchange(store, "problem", _unreachable(own, everybody))
        if found := [problem for problem in problems if problem]:
            self._let_all_read(store)
            raise ClusterError(found[0])
        return store

    def _let_all_read(self, store: Store) -> None:
        """Keep the store, which ends with the process of rank 0, until the others have read what is in it."""
        keys = [f"slime/read/{rank}" for rank in range(self._size)]
        with suppress(OSError, RuntimeError):
            store.set(keys[self._rank], "")
            if self._rank == 0:
                store.wait(keys, timedelta(seconds=_CONNECT_S))

    def failed(self, why: str) -> ClusterError:
        """The error to raise where this rank does not find the others."""
        took = time.monotonic() - self._started
        try:
            machine = address_towards(self._host, self._port)
        except OSError:
            machine = socket.gethostname()
        return ClusterError(
            f"Training rank {self._rank} (process {os.getpid()} on {machine}) did not find the other ranks at "
            f"{self._host}:{self._port}, where rank 0 waits for all {self._size}: {why} It took {took:.1f} s, of at most "
            f"{self._minutes:g} minutes (--distributed-timeout-minutes)."
        )

    def _store(self) -> Store:
        left = timedelta(seconds=max(1.0, self._deadline - time.monotonic()))
        try:
            # A store that is given a socket listens on that address alone, not on all of the machine's.
            if self._rank:
                self._wait_for_rank_0()
            listening = None if self._rank else _listen(self._host, self._port)
            return TCPStore(
                *(self._host, self._port, self._size),
                is_master=self._rank == 0,
                timeout=left,
                wait_for_workers=False,
                master_listen_fd=listening,
                use_libuv=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise self.failed(f"{_in_words(error)}.") from error

    def _wait_for_rank_0(self) -> None:
        """Return when something listens where rank 0 waits. It may be on its way still."""
        said = False
        while True:
            try:
                socket.create_connection((self._host, self._port), _CONNECT_S).close()
                return
            except OSError as error:
                waited = time.monotonic() - self._started
                if time.monotonic() > self._deadline:
                    raise self.failed(
                        f"{_in_words(error)}. Check that a rank with the number 0 (RANK) was started there, and that this "
                        "machine reaches that address."
                    ) from error
                if not said and waited > (_NOTICE_S if isinstance(error, ConnectionRefusedError) else _CONNECT_S - 1):
                    said = True
                    logger.warning(
                        "training rank %d (process %d) waits for rank 0 at %s:%d: %s, tried for %.0f s",
                        *(self._rank, os.getpid(), self._host, self._port, _in_words(error), waited),
                    )
                time.sleep(_PAUSE_S)

    def _exchange(self, store: Store, what: str, text: str) -> list[str]:
        """Tell all ranks this text, and return those of all, in their order."""
        keys = [f"slime/{what}/{rank}" for rank in range(self._size)]
        try:
            store.set(keys[self._rank], text)
            while not store.check(keys):
                if time.monotonic() > self._deadline:
                    missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
                    raise self.failed(
                        f"rank {', '.join(missing)} did not come. Check that {self._size} ranks were started (WORLD_SIZE), "
                        "each with a number of its own (RANK), and that their machines reach that address."
                    )
                time.sleep(_PAUSE_S)
            return [value.decode() for value in store.multi_get(keys)]
        except (OSError, RuntimeError) as error:
            raise self.failed(f"{_in_words(error)}.") from error


def _unreachable(own: _Whereabouts, everybody: list[_Whereabouts]) -> str:
    """What is wrong with the way to the first rank on each of the other machines; "" if nothing is."""
    firsts = {other.machine: other for other in reversed(everybody)}
    for other in firsts.values():
        if other.machine == own.machine:
            continue
        started = time.monotonic()
        try:
            socket.create_connection((other.address, other.port), _CONNECT_S).close()
        except OSError as error:
            return (
                f"{str(own).capitalize()} does not reach {other} at {other.address}:{other.port} ({other.interface}): "
                f"{_in_words(error)}, after {time.monotonic() - started:.1f} s. Ranks connect to each other on any port, so no "
                "firewall may stand between their machines. GLOO_SOCKET_IFNAME, set on each machine, chooses another interface."
            )
    return ""


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing answers (timed out)"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")


def _listen(host: str, port: int) -> int:
    """Listen on that address alone and return the number of the socket, which the caller owns."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family).detach()
