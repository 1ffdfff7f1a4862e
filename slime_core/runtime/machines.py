"""`Outlook`: tries whether the processes of Ray that a run needs answer, and says so when one does not. `actor_handles.Watch` has one.

Ray gives a machine up when it has not answered for about half a minute, a rank that waits for it in an exchange notices nothing for
longer, and of the processes on the driver's own machine Ray says nothing at all, or ends the driver after a minute. A connection
to a process tells within seconds, however busy its machine is: whether nothing answers, or nothing listens there any more.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from slime_core.errors import WorkerDied

logger = logging.getLogger(__name__)

_EVERY_S, _ANSWER_S = 1.0, 2.5
"""Between two looks, and for a machine to answer. A lost packet is sent again after one second."""
GIVEN_UP_S = 30.0
"""How long a machine may not answer. A connection that was cut for less goes on where it was."""
ENDED_S = {"raylet": 2.0, "gcs_server": 10.0}
"""How long nothing may listen at the port of a process. A head that keeps its state elsewhere may come back in that time."""
_AT_ONCE = 64


@dataclass(frozen=True)
class RayProcess:
    """A process of Ray.

    Attributes:
        name: "raylet", one on each machine, or "gcs_server", which the head has besides.
        address, port: where it listens.
        who: what of the run is on its machine, in words.
    """

    name: str
    address: str
    port: int
    who: str

    def ended(self) -> WorkerDied | None:
        """The error to raise if nothing listens at its port any more, as a connection that is tried now shows."""
        problem = _problem(self)
        return self._has_ended(problem) if problem.is_refused else None

    def _has_ended(self, problem: _Problem) -> WorkerDied:
        return WorkerDied(
            f"Ray's process {self.name} on {self.address}, the machine of {self.who}, has ended: nothing listens at its port "
            f"{self.port} any more ({problem.text}). It was stopped, as `ray stop` does, or killed, or crashed, perhaps for want of "
            f"memory; Ray's folder of logs on that machine has its {self.name}.out."
        )

    def _is_cut_off(self, problem: _Problem, seconds: float) -> WorkerDied:
        return cut_off(self.who, f"nothing answered at port {self.port} for {seconds:.0f} s: {problem.text}")


def cut_off(what: str, why: str) -> WorkerDied:
    """The error to raise when a machine is gone, and what is on it."""
    return WorkerDied(
        f"The {what.removeprefix('the ')} {'are lost with their' if ' and ' in what else 'is lost with its'} machine: {why}. The machine is down, or the network to it. When it is "
        "back, `ray start` there brings it into the cluster again."
    )


class Outlook:
    """Looks at the processes on a thread of its own.

    Args:
        processes: those to look at.
        lost: is told once, when one of them has not answered for `GIVEN_UP_S`, or nothing has listened at its port for as long as `ENDED_S` says.
    """

    def __init__(self, processes: Sequence[RayProcess], lost: Callable[[WorkerDied], None]) -> None:
        self._processes, self._lost = processes, lost
        self._silent: dict[RayProcess, float] = {}  # since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="outlook", daemon=True)
        if processes:
            self._thread.start()

    def is_silent(self, address: str) -> bool:
        """Whether something on a machine did not answer when it was looked at last."""
        return any(process.address == address for process in list(self._silent))

    def close(self) -> None:
        """Look no longer."""
        self._over.set()

    def _look(self) -> None:
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._processes)), thread_name_prefix="outlook") as pool:
            while not self._over.wait(_EVERY_S):
                started = time.monotonic()
                for process, problem in zip(self._processes, pool.map(_problem, self._processes), strict=True):
                    if not self._over.is_set():
                        self._note(process, problem, started)

    def _note(self, process: RayProcess, problem: _Problem, started: float) -> None:
        now, since = time.monotonic(), self._silent.get(process)
        if not problem.text:
            if since is not None:
                logger.warning("%s at %s answers again, after %.0f s", process.name, process.address, now - since)
                del self._silent[process]
            return
        if since is None:
            known = self.is_silent(process.address)
            self._silent[process] = started
            if problem.is_refused:
                logger.warning(
                    "%s, the machine of %s: nothing listens at port %d any more (%s): Ray's process %s there has ended. If it "
                    "does not come back within %.0f s, the run ends.",
                    *(process.address, process.who, process.port, problem.text, process.name, ENDED_S[process.name]),
                )
            elif not known:
                logger.warning(
                    "%s, the machine of %s, does not answer at port %d (%s, after %.1f s). Is it up, and the network to it? If it "
                    "does not come back within %.0f s, the run ends.",
                    *(process.address, process.who, process.port, problem.text, now - started, GIVEN_UP_S),
                )
        elif now - since > (ENDED_S[process.name] if problem.is_refused else GIVEN_UP_S):
            self._over.set()
            self._lost(process._has_ended(problem) if problem.is_refused else process._is_cut_off(problem, now - since))


@dataclass(frozen=True)
class _Problem:
    """Why a process does not answer; no text: it does."""

    text: str = ""
    is_refused: bool = False


def _problem(process: RayProcess) -> _Problem:
    try:
        socket.create_connection((process.address, process.port), _ANSWER_S).close()
    except ConnectionRefusedError as error:
        return _Problem(error.strerror or "refused", is_refused=True)
    except OSError as error:
        return _Problem("timed out" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__)
    return _Problem()
