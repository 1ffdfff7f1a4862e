"""`ActorHandle`: the driver's side of a worker in a Ray actor, or of all training ranks. `Watch` ends a run that lost one.

When the process of any worker is gone, everything that the driver waits for fails with a `WorkerDied` that names it, so
a rank that waits in a collective for one that is no more keeps nobody waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic

import ray
from ray.exceptions import OutOfMemoryError, RayError

from slime_core.errors import SlimeError, WorkerDied
from slime_core.runtime.actor import ActorLocation, Maker
from slime_core.runtime.connect import Machine
from slime_core.runtime.failures import Failure
from slime_core.runtime.handles import Parameters, Result, Worker
from slime_core.runtime.machines import Outlook, RayProcess, cut_off

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""After the first error of a rank, how long its cause may take to show: another rank's error, or its death."""
_LOOK_S = 0.5
_BESIDE_S = 10.0
"""For what an actor does beside its work: telling timings, and closing its worker at the end."""


@dataclass(frozen=True)
class Member:
    """An actor with its name and location."""

    name: str
    actor: Any
    where: ActorLocation

    def __str__(self) -> str:
        return f"{self.name} (process {self.where.pid} on {self.where.node})"

    def died(self, error: Exception) -> WorkerDied:
        """The error to raise when Ray reports that this actor is gone."""
        if machine_is_gone(error):
            return cut_off(str(self), "Ray has given the machine up")
        why = "its machine ran out of memory" if isinstance(error, OutOfMemoryError) else "it was killed, or crashed"
        return WorkerDied(f"The {self} has ended: {why}. What it printed last stands above.")


def machine_is_gone(error: Exception) -> bool:
    """Whether an error of Ray says that an actor's machine, not only its process, is gone."""
    said = str(error).lower()
    return any(words in said for words in ("node has died", "node was dead", "node is dead", "node died"))


def _processes(members: Sequence[Member], machines: Sequence[Machine]) -> list[RayProcess]:
    """The processes of Ray that a run needs: those of the machines of its workers, of the head and of the driver."""
    gcs: str = ray.get_runtime_context().gcs_address
    head, _, port = gcs.rpartition(":")
    here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves it without types
    on: dict[str, list[str]] = {here: ["the run itself"]}
    on.setdefault(head, []).append("the head of the Ray cluster")
    for member in members:
        on.setdefault(member.where.node, []).append(str(member))
    who = {address: " and ".join(filter(None, [", ".join(most), last])) for address, (*most, last) in on.items()}
    found = [m.raylet(who[m.address]) for m in machines if m.address in on]
    return [*found, RayProcess("gcs_server", head, int(port), who[head])]


class Watch:
    """Notices when an actor is gone, and fails what the driver waits for then.

    Args:
        members: all actors of the run.
        machines: all machines of the cluster. Those of members, of the head and of the driver are looked at.
    """

    def __init__(self, members: list[Member], machines: Sequence[Machine]) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._over = threading.Event()
        self.error: WorkerDied | None = None
        self._processes = _processes(members, machines)
        self._members = {member.actor.lives.remote(): member for member in members}
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        self._outlook = Outlook(self._processes, self.lost)

    def is_cut_off(self, member: Member) -> bool:
        """Whether the machine of this actor does not answer at present."""
        return self._outlook.is_silent(member.where.node)

    def died(self, member: Member, error: Exception) -> WorkerDied:
        """The error to raise when Ray reports that this actor is gone: it ends with Ray's process on its machine."""
        raylets = [p for p in self._processes if p.address == member.where.node and p.name == "raylet"]
        return next(filter(None, (raylet.ended() for raylet in raylets)), None) or member.died(error)

    def future(self) -> Future[Any]:
        """A new future, which fails when any worker of the run is gone."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self.error is not None:
                future.set_exception(self.error)
            else:
                self._waiting.add(future)
                future.add_done_callback(self._waiting.discard)
        return future

    def head_is_lost(self) -> bool:
        """Whether nothing can be asked of the cluster any more: a call would wait for its head, until Ray ends this process."""
        return self.error is not None and any(p.ended() for p in self._processes if p.name == "gcs_server")

    def lost(self, error: WorkerDied) -> None:
        """Fail everything that the driver waits for, because a worker is gone."""
        with self._lock:
            self.error = self.error or error
            waiting = list(self._waiting)
        for future in waiting:
            with suppress(InvalidStateError):
                future.set_exception(self.error)

    def close(self) -> None:
        """Stop watching: from now on workers may end."""
        self._outlook.close()
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            ended, _ = ray.wait(list(self._members), num_returns=1, timeout=_LOOK_S)
            for ref in ended:
                try:
                    ray.get(ref)
                except RayError as error:
                    if not self._over.is_set():
                        self.lost(self.died(self._members[ref], error))
                return


class ActorHandle(Generic[Worker]):
    """Actors that are called as one: all get the same calls in the same order.

    Args:
        members: the first one's results are the group's.
        watch: fails the futures when any worker of the run is gone.
    """

    def __init__(self, members: list[Member], watch: Watch) -> None:
        self._members, self._watch = members, watch

    def call(
        self,
        method: Callable[Concatenate[Worker, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Call the method in all actors, and return the future of the first one's result. Large arguments go into the object store
        once, not once for each actor."""
        return self._run(method, args, kwargs, lambda values: ray.get(values[0]))

    def keep(
        self,
        method: Callable[Concatenate[Worker, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """The result stays in the object store; the future gives Ray's reference to it, which Ray puts the result in place
        of where it is an argument."""
        return self._run(method, args, kwargs, lambda values: values[0])

    def fetch(self, kept: Any) -> Any:
        """What stands in the object store for what `keep` has given. Arrays in it are views of that, without a copy.

        Raises:
            WorkerDied: it is gone with the worker or its machine.
        """
        if not isinstance(kept, ray.ObjectRef):
            return kept
        try:
            return ray.get(kept)
        except RayError as error:
            raise self._watch.died(self._members[0], error) from None

    def call_all(
        self,
        method: Callable[Concatenate[Worker, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[list[Result]]:
        """Call the method in all actors, and return the future of all results, in their order."""
        return self._run(method, args, kwargs, ray.get)

    def take_timings(self) -> dict[str, float]:
        """The timings of the first actor's plugins; none if it does not answer within ten seconds."""
        try:
            timings: dict[str, float] = ray.get(self._members[0].actor.take_timings.remote(), timeout=_BESIDE_S)
            return timings
        except RayError:
            return {}

    def start(self, makers: Sequence[Maker], environments: Sequence[dict[str, str]]) -> Future[None]:
        """Let the n-th member set the n-th environment and make the n-th worker."""
        refs = [
            member.actor.start.options(num_returns=2).remote(maker, environment)
            for member, maker, environment in zip(self._members, makers, environments, strict=True)
        ]
        return self._collect(refs, lambda values: None)

    def close(self) -> None:
        """Let the workers give back what they hold, and end their processes."""
        self._watch.close()
        refs = [member.actor.close.remote() for member in self._members if not self._watch.is_cut_off(member)]
        with suppress(RayError):
            ray.wait(refs, num_returns=len(refs), timeout=_BESIDE_S)
        for member in self._members:
            ray.kill(member.actor)

    def _run(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        take: Callable[[list[Any]], Any],
    ) -> Future[Any]:
        if len(self._members) > 1:
            args = tuple(_shared(value) for value in args)
            kwargs = {name: _shared(value) for name, value in kwargs.items()}
        refs = [m.actor.call.options(num_returns=2).remote(method.__name__, *args, **kwargs) for m in self._members]
        return self._collect(refs, take)

    def _collect(self, refs: list[Any], take: Callable[[list[Any]], Any]) -> Future[Any]:
        """The future of what `take` makes of the members' results."""
        future = self._watch.future()

        def work() -> None:
            with suppress(InvalidStateError):  # the watch was faster
                try:
                    if failures := self._failures([status for status, _ in refs]):
                        raise _cause(failures)
                    future.set_result(take([value for _, value in refs]))
                except InvalidStateError:
                    raise
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work, name="call", daemon=True).start()
        return future

    def _failures(self, statuses: list[Any]) -> list[BaseException]:
        """What went wrong in the members, in their order; waits for all, or for some time after the first failure."""
        members = dict(zip(statuses, self._members, strict=True))
        found: dict[str, BaseException] = {}
        deadline: float | None = None
        while members and (deadline is None or time.monotonic() < deadline):
            ready, _ = ray.wait(list(members), num_returns=1, timeout=_LOOK_S if deadline else None)
            for ref in ready:
                member = members.pop(ref)
                try:
                    failure = ray.get(ref)
                except RayError as error:
                    died = self._watch.died(member, error)
                    self._watch.lost(died)
                    raise died from None
                if failure is not None:
                    found[member.name] = _placed(failure, member)
                    if deadline is None and members:
                        logger.warning("the %s failed: %s", member, failure.text.split("\n")[0])
                    deadline = deadline or time.monotonic() + GRACE_S
        return [found[member.name] for member in self._members if member.name in found]


def _placed(failure: Failure, member: Member) -> BaseException:
    """The error of a member, with a note where that runs, unless the message says so."""
    error = failure.error()
    if f"process {member.where.pid}" not in "\n".join([failure.text, *failure.notes]):
        error.add_note(f"in the {member}")
    return error


def _cause(failures: list[BaseException]) -> BaseException:
    """The error to show of several: one that explains itself rather than one that followed from it in another rank."""
    return next((failure for failure in failures if isinstance(failure, SlimeError)), failures[0])


def _shared(value: Any) -> Any:
    """A reference to the value in the object store, unless it is small."""
    small = (str, int, float, bool, Path, type(None), ray.ObjectRef)
    return value if isinstance(value, small) else ray.put(value)
