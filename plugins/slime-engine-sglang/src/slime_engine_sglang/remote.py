"""`RemoteServer`: a `Server` in a Ray actor, in one of the slots of a run on a cluster. `Fleet` drives it like one here.

The actor belongs to this process, and the server to the actor: each ends when what it belongs to ends, in whatever way. An
actor that is gone is made again in its slot when its server is started again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from slime_core.runtime.failures import Failure
from slime_core.runtime.slots import Slot
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.process import tail
from slime_engine_sglang.server import Server

_START_S, _CALL_S, _CLOSE_S = 300.0, 60.0, 8.0
"""How long an actor may take for its process or to start its server (which may import SGLang, for its options), for another
call, and to end its server."""


@dataclass(frozen=True)
class Place:
    """Where a server is."""

    host: str
    port: int
    on_gpu: bool


class ServerActor:
    """The process beside a server, on its machine.

    Args:
        folder: the run's working directory; paths mean the same here where it exists.
        args, number, log, gpus, port: of the `Server`; without GPUs, those that Ray gave this actor.
    """

    def __init__(self, folder: str, args: Any, number: int, log: Path, gpus: tuple[str, ...], port: int | None) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        self._number = number
        host = ray.util.get_node_ip_address()
        self._server = Server(args, number, log, host, gpus or ray.get_gpu_ids(), port)

    def __repr__(self) -> str:  # in front of every line that this process prints
        return f"SGLang server {self._number}"

    def place(self) -> Place:
        """Where the server listens."""
        return Place(self._server.host, self._server.port, self._server.on_gpu)

    def call(self, method: str, *args: Any) -> tuple[Failure | None, Any]:
        """(what went wrong, the result of the server's method): so what Ray itself raises is about this process."""
        try:
            return None, getattr(self._server, method)(*args)
        except Exception as error:
            return Failure.of(error, repr(self)), None


class RemoteServer:
    """See `Server`.

    Args:
        args: all options of the run.
        number: of this server, from 0.
        log: file for what it prints.
        slot: where it goes.
    """

    def __init__(self, args: Any, number: int, log: Path, slot: Slot) -> None:
        self._number, self._log, self._slot = number, log, slot
        self._arguments = (os.getcwd(), SimpleNamespace(**vars(args)), number, log, slot.gpus)
        self._place: Place | None = None
        self._actor = self._make_actor()

    @property
    def url(self) -> str:
        place = self._known_place()
        return f"http://{place.host}:{place.port}"

    @property
    def on_gpu(self) -> bool:
        return self._known_place().on_gpu

    def start(self, model: str, version: int) -> str:
        """See `Server.start`.

        Raises:
            SGLangError: it cannot be started in its slot, or not on the same machine again.
        """
        self._known_place()
        try:
            return self._call("start", model, version, timeout=_START_S)
        except RayError:
            pass
        ray.kill(self._actor)
        self._actor = self._make_actor()
        try:
            if self._ask_place() != self._place:
                ray.kill(self._actor)
                raise SGLangError(f"The machine of {self.url} is gone.")
            return self._call("start", model, version, timeout=_START_S)
        except RayError as error:
            raise self._lost(error) from None

    def status(self) -> int | None:
        """See `Server.status`; -1 if the actor is gone."""
        try:
            return self._call("status")
        except (GetTimeoutError, ActorUnavailableError):
            return None  # perhaps; the health check will tell
        except RayError:
            return -1

    def log_tail(self) -> str:
        """See `Server.log_tail`."""
        try:
            return self._call("log_tail")
        except RayError as error:
            return f"{self._lost(error)} {self._log} ends with:\n{tail(self._log)}"

    def close(self) -> None:
        """End it, and the actor."""
        with suppress(RayError):
            self._call("close", timeout=_CLOSE_S)
        ray.kill(self._actor)

    def _make_actor(self) -> Any:
        remote: Any = ray.remote(ServerActor)
        port = self._place.port if self._place else None  # the trainer and the router know the address
        return remote.options(**self._slot.options()).remote(*self._arguments, port)

    def _known_place(self) -> Place:
        """Waits for the actor."""
        if self._place is None:
            try:
                self._place = self._ask_place()
            except RayError as error:
                raise self._lost(error) from None
        return self._place

    def _ask_place(self) -> Place:
        return ray.get(self._actor.place.remote(), timeout=_START_S)

    def _call(self, method: str, *args: Any, timeout: float = _CALL_S) -> Any:
        failure, value = ray.get(self._actor.call.remote(method, *args), timeout=timeout)
        if failure is not None:
            raise failure.error()
        return value

    def _lost(self, error: RayError) -> SGLangError:
        why = (str(error).strip() or type(error).__name__).split("\n")[0]
        where = f" on {self._place.host}" if self._place else ""
        return SGLangError(f"The Ray actor of SGLang server {self._number}{where} is not there: {why}")
