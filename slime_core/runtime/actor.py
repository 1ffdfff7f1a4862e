"""`WorkerActor`: the process of one worker. The driver's `ActorHandle` calls it.

A call answers with a pair: what went wrong (None: nothing) and the result. So Ray never sees an error of ours, and
whatever it reports itself means that the process or its machine is gone.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from slime_core.contracts.data import Closes
from slime_core.display import log_to_stderr, tell_plainly
from slime_core.free_port import FreePort
from slime_core.model_folders import look_once_through_models
from slime_core.plugins import Plugins
from slime_core.runtime.failures import Failure
from slime_core.runtime.tensors import share_tensors_by_bytes
from slime_core.start_up import collect_again, collect_seldom


@dataclass(frozen=True)
class ActorLocation:
    """Where an actor runs: its process, its machine, a free port of that, kept for it, and the GPUs that Ray gave it."""

    pid: int
    node: str
    port: int
    gpus: tuple[str, ...]


class Maker(Protocol):
    """What a worker is made from. Plain data that is pickled on its way to the worker's process."""

    def make(self) -> tuple[Any, Plugins]:
        """Make the worker, and return it with the plugins that were loaded for it. Called once, in the worker's process."""


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray leaves it without types
    return address


class WorkerActor:
    """Makes a worker and runs its methods, one after the other, on one thread.

    Args:
        name: how messages name it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._who = f"{name} (process {os.getpid()} on {_own_address()})"
        self._worker: Any = None
        self._plugins: Plugins | None = None
        self._port = FreePort("")

    def __repr__(self) -> str:  # in front of every line that this process prints
        return self._name

    def where(self) -> ActorLocation:
        """Where this actor runs. Called before `start`."""
        gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        return ActorLocation(os.getpid(), _own_address(), self._port.number, gpus)

    def start(self, maker: Maker, environment: dict[str, str]) -> tuple[Failure | None, None]:
        """Make the worker, with these environment variables set."""
        collect_seldom()
        look_once_through_models()
        try:
            log_to_stderr()
            tell_plainly()
            os.environ.update(environment)
            self._worker, self._plugins = maker.make()
            share_tensors_by_bytes()
        except BaseException as error:
            return Failure.of(error, self._who), None
        finally:
            collect_again()  # where samples are read, garbage is not looked for among what was imported
        return None, None

    def call(self, method: str, *args: Any, **kwargs: Any) -> tuple[Failure | None, Any]:
        """Run a method of the worker."""
        try:
            return None, getattr(self._worker, method)(*args, **kwargs)
        except BaseException as error:
            return Failure.of(_said(error, method), self._who), None

    # The driver calls these while `call` is at work; they run on threads of their own.

    @ray.method(concurrency_group="beside")
    def lives(self) -> None:
        """Wait for ever. That this call fails tells the driver that the process is gone."""
        threading.Event().wait()

    @ray.method(concurrency_group="beside")
    def take_timings(self) -> dict[str, float]:
        """The seconds and calls of this process's plugins since the last time; see `Plugins.take_timings`."""
        return self._plugins.take_timings() if self._plugins else {}

    @ray.method(concurrency_group="beside")
    def close(self) -> None:
        """Let the worker give back what it holds outside this process."""
        if isinstance(self._worker, Closes):
            self._worker.close()


def _said(error: BaseException, method: str) -> BaseException:
    """The error; where it tells that other training ranks did not come in time, what a person can do with that. Whatever a worker
    computes with, a library's exchanges included, comes through here."""
    if "torch.distributed" not in sys.modules:
        return error
    from slime_core.tensors.ranks import of_late_ranks

    return of_late_ranks(error, f"their part of {method!r}") or error
