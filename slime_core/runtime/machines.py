"""`Outlook`: tries whether the other machines of a run answer, and says so when one does not. `actor_handles.Watch` has one.

Ray gives a machine up when it has not answered for about half a minute, and a rank that waits for it in an exchange notices
nothing for longer. A connection to Ray's process there tells within seconds, however busy that machine is.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from slime_core.runtime.connect import Machine

logger = logging.getLogger(__name__)

_EVERY_S, _ANSWER_S = 1.0, 2.5
"""Between two looks, and for a machine to answer. A lost packet is sent again after one second."""
GIVEN_UP_S = 30.0
"""How long a machine may not answer. A connection that was cut for less goes on where it was."""
_AT_ONCE = 64


class Outlook:
    """Looks at the machines on a thread of its own.

    Args:
        machines: those to look at.
        who: what of the run is on each, in words, by the machine's address.
        lost: is told a machine's address and why it counts as lost, once, when it has not answered for `GIVEN_UP_S`.
    """

    def __init__(self, machines: Sequence[Machine], who: Mapping[str, str], lost: Callable[[str, str], None]) -> None:
        self._machines, self._who, self._lost = machines, who, lost
        self._silent: dict[str, float] = {}  # since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="outlook", daemon=True)
        if machines:
            self._thread.start()

    def is_silent(self, address: str) -> bool:
        """Whether a machine did not answer when it was looked at last."""
        return address in self._silent

    def close(self) -> None:
        """Look no longer."""
        self._over.set()

    def _look(self) -> None:
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._machines)), thread_name_prefix="outlook") as pool:
            while not self._over.wait(_EVERY_S):
                started = time.monotonic()
                for machine, problem in zip(self._machines, pool.map(_problem, self._machines), strict=True):
                    if not self._over.is_set():
                        self._note(machine, problem, started)

    def _note(self, machine: Machine, problem: str, started: float) -> None:
        address, now = machine.address, time.monotonic()
        since = self._silent.get(address)
        if not problem:
            if since is not None:
                logger.warning("%s answers again, after %.0f s", address, now - since)
                del self._silent[address]
            return
        if since is None:
            self._silent[address] = started
            logger.warning(
                "%s, the machine of %s, does not answer at port %d (%s, after %.1f s). Is it up, and the network to it? If it does "
                "not come back within %.0f s, the run ends.",
                *(address, self._who[address], machine.port, problem, now - started, GIVEN_UP_S),
            )
        elif now - since > GIVEN_UP_S:
            self._over.set()
            self._lost(address, f"nothing answered at port {machine.port} for {now - since:.0f} s: {problem}")


def _problem(machine: Machine) -> str:
    """Why nothing answers on a machine; "" if something does."""
    try:
        socket.create_connection((machine.address, machine.port), _ANSWER_S).close()
    except OSError as error:
        return "timed out" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
    return ""
