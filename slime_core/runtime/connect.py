"""Joins the Ray cluster of `--ray-address`, or starts one on this machine for the time of a run."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from slime_core.errors import ClusterError
from slime_core.runtime.layout import Resources
from slime_core.runtime.machines import RayProcess
from slime_core.secrets import remember_secret

logger = logging.getLogger(__name__)

_ANSWER_S = 4.0
_ATTEMPTS = 3
_SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's variable, which it reads on Linux too


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster.

    Attributes:
        address, port: where Ray's process on it listens.
        resources: what it has, as {"CPU": number, "GPU": number}.
    """

    address: str
    port: int
    resources: Resources

    def raylet(self, who: str = "") -> RayProcess:
        """Ray's process on it.

        Args:
            who: what of the run is there, in words.
        """
        return RayProcess("raylet", self.address, self.port, who)


@dataclass(frozen=True)
class Connection:
    """The connection of this process, the driver, to a cluster.

    Attributes:
        ours: the connection was made by `connect`, so `close` ends it (and the cluster, if it was started for the run).
    """

    ours: bool

    def machines(self) -> list[Machine]:
        """The machines of the cluster that are alive. Ray counts one whose process was killed for half a minute longer; where it was
        started again on that machine, only what answers is one."""
        import ray

        found = [
            Machine(
                node["NodeManagerAddress"],
                int(node["NodeManagerPort"]),
                {name: float(node["Resources"].get(name, 0)) for name in ("CPU", "GPU")},
            )
            for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it without types
            if node["Alive"]
        ]
        known = [machine.address for machine in found]
        return [machine for machine in found if known.count(machine.address) == 1 or not machine.raylet().ended()]

    def close(self) -> None:
        """Leave the cluster."""
        import ray

        if self.ours:
            ray.shutdown()


def connect(address: str) -> Connection:
    """Join the cluster at `address`, or start one for "local". A process that has joined one already stays there.

    Raises:
        ClusterError: there is none, it does not answer, or none can be started.
    """
    import ray

    if ray.is_initialized():
        return Connection(ours=False)
    if "://" in address:
        raise ClusterError(
            f"--ray-address {address}: a run is a driver inside the cluster, not a client of it. Submit it to the job server "
            "with `ray job submit --address http://HEAD:8265 -- slime train …`, or give HOST:PORT of the head node on a "
            "machine of the cluster."
        )
    if address not in ("auto", "local"):
        _require_answer(address)
    try:
        if address == "local":
            start_local()
        else:
            ray.init(address=address, logging_level=logging.ERROR)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise ClusterError(
            f"No Ray cluster could be {'started on this machine' if address == 'local' else f'joined at {address}'}: {first} "
            "Start one with `ray start --head`, and give its address with --ray-address."
        ) from error
    return Connection(ours=True)


def start_local(**settings: Any) -> None:
    """Start a cluster on this machine and join it. Ray gives its own processes 15 s to start, which is too little for a
    busy machine the first time, so it is tried again.

    Args:
        settings: of `ray.init`.
    """
    import ray

    for attempt in range(_ATTEMPTS):
        try:
            with _in_sessions_of_their_own():
                ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, **settings)
            return
        except Exception:
            ray.shutdown()  # what has been started of it
            if attempt == _ATTEMPTS - 1:
                raise


@contextmanager
def _in_sessions_of_their_own() -> Iterator[None]:
    """Ray's own processes that are started meanwhile get no signal that is for the run: a closed terminal and `timeout` send it to the
    whole process group, and the run goes on to a checkpoint, which it cannot write without them. Ray has no option for that. Where
    the kernel does not end them with this process, Ray does so by the group, in which they stay then."""
    from ray._private import services, utils

    start = services.ConsolePopen
    if utils.detect_fate_sharing_support():  # type: ignore[no-untyped-call]  # Ray leaves it without types
        services.ConsolePopen = partial(start, start_new_session=True)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = start  # type: ignore[misc]


def _require_token() -> None:
    """Let the cluster obey only who knows a token that is made for it: others on this machine could run code in it otherwise. Who
    has set `RAY_AUTH_MODE` decides himself."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    before = os.environ.get("RAY_AUTH_TOKEN")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    remember_secret(os.environ["RAY_AUTH_TOKEN"])
    if "ray" not in sys.modules:
        return
    try:  # a plugin has imported Ray, which read the variables then
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without types

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    except (ImportError, AttributeError, TypeError) as error:
        os.environ.pop("RAY_AUTH_MODE")
        os.environ.pop("RAY_AUTH_TOKEN")
        if before is not None:
            os.environ["RAY_AUTH_TOKEN"] = before
        logger.warning(
            "the Ray of this run takes no token, because something imported Ray %s before the run began (%s): on a machine that you "
            "share, others can run code in it as you. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before you start.",
            *(getattr(sys.modules["ray"], "__version__", "?"), error),
        )


def _require_loopback() -> None:
    """Let the cluster listen on 127.0.0.1 alone, as Ray does on Windows and macOS: it has no other switch for that, and changes
    127.0.0.1 to the machine's own address where it is given one. Ray reads the variable when it is imported."""
    only_here = os.environ.setdefault(_SEVERAL_MACHINES, "0") == "0"
    if only_here and "ray" in sys.modules:
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False


def prepare(address: str) -> None:
    """Set what must be set before Ray is imported."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # what it says about itself is of no use here
    if address == "local":
        _require_loopback()
        _require_token()
        # Ray starts an idle worker for each core, a second of a core and 70 MB each, that no process of a run can use: they are
        # started with an environment of their own.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # a worker's death is reported once, by us


def _require_answer(address: str) -> None:
    """Raise `ClusterError` if nothing answers at the address within four seconds; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--ray-address is {address!r}; expected HOST:PORT, 'auto' or 'local'.")
    started = time.monotonic()
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except OSError as error:
        raise ClusterError(
            f"--ray-address {address}: nothing answers there ({error}, after {time.monotonic() - started:.1f} s). `ray start --head` prints the address of the "
            "cluster that it starts; --ray-address local starts one on this machine."
        ) from error
