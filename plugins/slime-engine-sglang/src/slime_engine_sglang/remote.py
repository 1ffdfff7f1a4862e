"""`RemoteServer`: a `Server` in a Ray actor, in one of the slots of a run on a cluster. `Fleet` drives it like a server
on its own machine.

The actor belongs to this process, and the server to the actor: each ends when what it belongs to ends, in whatever way.
An actor that is gone is made again in its slot when its server is started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from slime_core.runtime.failures import Failure
from slime_core.runtime.slots import Slot
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.process import tail
from slime_engine_sglang.server import Server

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments

P = ParamSpec("P")
T = TypeVar("T")

START_TIMEOUT_S = 300.0
"""How many seconds an actor may take for its process, or to start its server (which may import SGLang, for its
options)."""
CALL_TIMEOUT_S = 60.0
"""How many seconds an actor may take for any other call."""
CLOSE_TIMEOUT_S = 8.0
"""How many seconds an actor may take to end its server."""


@dataclass(frozen=True)
class ServerLocation:
    """The address of a server, and whether it computes on GPUs."""

    host: str
    port: int
    on_gpu: bool


class ServerActor:
    """The process beside a server, on the server's machine. It is a Ray actor.

    Args:
        folder: the run's working directory. Where it exists on this machine, paths are relative to it.
        args, number, log, gpus, port: the arguments of the `Server`; without GPUs it gets those that Ray gave this
            actor.
    """

    def __init__(
        self,
        folder: str,
        args: SGLangRunArguments,
        number: int,
        log: Path,
        gpus: tuple[str, ...],
        port: int | None,
    ) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        self._number = number
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray does not annotate it
        self._server = Server(args, number, log, host, gpus or ray.get_gpu_ids(), port)

    def __repr__(self) -> str:  # in front of every line that this process prints
        return f"SGLang server {self._number}"

    def location(self) -> ServerLocation:
        """Return where the server listens."""
        return ServerLocation(self._server.host, self._server.port, self._server.on_gpu)

    def call(self, method: str, *args: Any) -> tuple[Failure | None, Any]:
        """Call a method of the server, and return what went wrong, or None, and its result.

        So an error that Ray itself raises is always about this process.
        """
        try:
            return None, getattr(self._server, method)(*args)
        except Exception as error:
            return Failure.of(error, repr(self)), None


class RemoteServer:
    """A server in a Ray actor, with the interface of `Server`.

    Args:
        args: the options of the run.
        number: the number of the server, from 0.
        log: the file that gets what the server prints.
        slot: where the actor is placed.
    """

    def __init__(self, args: SGLangRunArguments, number: int, log: Path, slot: Slot) -> None:
        self._number, self._log, self._slot = number, log, slot
        self._arguments = (os.getcwd(), SimpleNamespace(**vars(args)), number, log, slot.gpus)
        self._location: ServerLocation | None = None
        self._actor = self._make_actor()

    @property
    def url(self) -> str:
        """The server's address."""
        location = self._known_location()
        return f"http://{location.host}:{location.port}"

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on GPUs."""
        return self._known_location().on_gpu

    def start(self, model: str, version: int) -> str:
        """Start the server and return its address, as `Server.start` does.

        Raises:
            SGLangError: it cannot be started in its slot, or not on the same machine again.
        """
        self._known_location()
        try:
            return self._call(START_TIMEOUT_S, Server.start, model, version)
        except RayError:
            pass
        ray.kill(self._actor)
        self._actor = self._make_actor()
        try:
            if self._ask_location() != self._location:
                ray.kill(self._actor)
                raise SGLangError(f"The machine of {self.url} is gone.")
            return self._call(START_TIMEOUT_S, Server.start, model, version)
        except RayError as error:
            raise self._lost(error) from None

    def status(self) -> int | None:
        """Return the exit status of a server that has ended, None while it runs, and -1 if the actor is gone."""
        try:
            return self._call(CALL_TIMEOUT_S, Server.status)
        except (GetTimeoutError, ActorUnavailableError):
            return None  # it may run; the health check will tell
        except RayError:
            return -1

    def log_tail(self) -> str:
        """Say where the log is, and how it ends."""
        try:
            return self._call(CALL_TIMEOUT_S, Server.log_tail)
        except RayError as error:
            return f"{self._lost(error)} {self._log} ends with:\n{tail(self._log)}"

    def close(self) -> None:
        """End the server and the actor."""
        with suppress(RayError):
            self._call(CLOSE_TIMEOUT_S, Server.close)
        ray.kill(self._actor)

    def _make_actor(self) -> Any:
        remote: Any = ray.remote(ServerActor)
        port = self._location.port if self._location else None  # the trainer and the router know the address
        return remote.options(**self._slot.options()).remote(*self._arguments, port)

    def _known_location(self) -> ServerLocation:
        """Return where the server is, after waiting for the actor."""
        if self._location is None:
            try:
                self._location = self._ask_location()
            except RayError as error:
                raise self._lost(error) from None
        return self._location

    def _ask_location(self) -> ServerLocation:
        return cast(ServerLocation, ray.get(self._actor.location.remote(), timeout=START_TIMEOUT_S))

    def _call(
        self, timeout: float, method: Callable[Concatenate[Server, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a method of the server in the actor, and raise what it raises.

        Raises:
            RayError: the actor does not answer.
        """
        failure, value = ray.get(self._actor.call.remote(method.__name__, *args), timeout=timeout)
        if failure is not None:
            raise failure.error()
        return cast(T, value)

    def _lost(self, error: RayError) -> SGLangError:
        why = (str(error).strip() or type(error).__name__).split("\n")[0]
        where = f" on {self._location.host}" if self._location else ""
        return SGLangError(f"The Ray actor of SGLang server {self._number}{where} is not there: {why}")
