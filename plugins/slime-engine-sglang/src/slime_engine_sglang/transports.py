"""The ways on which weights travel from training rank 0 to the servers. Each takes the weights in pieces, between the
beginning and the end of an update; see `weights.WeightSender`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from slime_engine_sglang.control import Control, as_json, ask_all
from slime_engine_sglang.errors import SGLangError

if TYPE_CHECKING:
    from torch import Tensor

Piece = Sequence[tuple[str, "Tensor"]]
GROUP_TIMEOUT = timedelta(minutes=10)
_REFUSAL_S = 0.02
"""Within this time, a server that refuses to take part in a broadcast has said so."""


class Transport(Protocol):
    """How pieces of weights get into servers."""

    def open(self, servers: Sequence[Control], starts: Mapping[str, int]) -> None:
        """Prepare to send to these servers, which have been started so often."""
        raise NotImplementedError

    def send(self, servers: Sequence[Control], piece: Piece, version: int) -> None:
        """Send a piece to all of them, and return when they have it."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what `open` made."""
        raise NotImplementedError


BODY_BYTES = 64 * 2**20
"""Weights in the body of one HTTP request. A server holds several copies of it at a time."""


class TensorTransport:
    """In the bodies of HTTP requests: needs no network but theirs, and is slow.

    Args:
        ranks: tensor-parallel ranks of a server; each reads the entry of its own.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def open(self, servers: Sequence[Control], starts: Mapping[str, int]) -> None:
        """Nothing to prepare."""

    def send(self, servers: Sequence[Control], piece: Piece, version: int) -> None:
        """See `Transport`."""
        rest = as_json({"weight_version": str(version), "flush_cache": False})
        for_ranks = b", ".join([b'"%b"' % encoded(piece)] * self._ranks)
        body = b'{"serialized_named_tensors": [%b], %b' % (
            for_ranks,
            rest[1:],
        )  # base64 needs no escapes: not searched for any
        ask_all(servers, "/update_weights_from_tensor", body).results()

    def close(self) -> None:
        """Nothing to give back."""


class GroupTransport:
    """Broadcast in a process group whose rank 0 is the trainer and whose further ranks are those of the servers. It is
    made once, and again when other servers, or newly started ones, are to be reached.

    Args:
        ranks: tensor-parallel ranks of a server.
        backend: which of the two.
    """

    def __init__(self, ranks: int, backend: Literal["nccl", "gloo"]) -> None:
        self._ranks, self._backend = ranks, backend
        self._group: Any = None
        self._store: Any = None
        self._members: tuple[Any, ...] = ()
        self._name = ""

    def open(self, servers: Sequence[Control], starts: Mapping[str, int]) -> None:
        """See `Transport`."""
        members = tuple((control.url, starts.get(control.url, 0)) for control in servers)
        if members == self._members:
            return
        self._leave(servers)
        host = own_address([control.url for control in servers])
        listener = socket.socket(socket.AF_INET)
        listener.bind((host, 0))
        listener.listen()
        port, world_size = listener.getsockname()[1], 1 + len(servers) * self._ranks
        self._name = f"slime-weights-{time.time_ns()}"
        asked = [
            ask_all(
                [control],
                "/init_weights_update_group",
                {
                    "master_address": host,
                    "master_port": port,
                    "rank_offset": 1 + number * self._ranks,
                    "world_size": world_size,
                    "group_name": self._name,
                    "backend": self._backend,
                },
            )
            for number, control in enumerate(servers)
        ]
        joining: Future[tuple[Any, Any]] = Future()
        threading.Thread(
            target=lambda: _settle(joining, lambda: _join(host, listener, world_size, self._name, self._backend)),
            daemon=True,
        ).start()
        while not joining.done():
            for one in asked:
                one.check()  # a server that refuses never joins
            time.sleep(0.01)
        self._store, self._group = joining.result()
        for one in asked:
            one.results()
        self._members = members

    def send(self, servers: Sequence[Control], piece: Piece, version: int) -> None:
        """See `Transport`. A server that says no ends the broadcast; what it would have waited for is not sent."""
        import torch.distributed as dist

        device = "cuda" if self._backend == "nccl" else "cpu"
        tensors = [tensor.detach().to(device).contiguous() for _, tensor in piece]
        body = {
            "names": [name for name, _ in piece],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors],
            "shapes": [list(tensor.shape) for tensor in tensors],
            "group_name": self._name,
            "weight_version": str(version),
            "flush_cache": False,
        }
        asked = ask_all(servers, "/update_weights_from_distributed", body)
        time.sleep(_REFUSAL_S)
        asked.check()
        for tensor in tensors:
            work = dist.broadcast(tensor, src=0, group=self._group, async_op=True)
            while not work.is_completed():
                asked.check()
                time.sleep(0.0005)
            work.wait()
        asked.results()

    def close(self) -> None:
        """Leave the group. The servers leave it when they end."""
        self._leave(())

    def _leave(self, servers: Sequence[Control]) -> None:
        if self._group is None:
            return
        import torch.distributed as dist

        for control in servers:
            with contextlib.suppress(SGLangError):  # one that was started anew is in no group
                control.ask("/destroy_weights_update_group", {"group_name": self._name}, timeout=60)
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group(self._group)
        self._group, self._store, self._members = None, None, ()


def encoded(piece: Piece) -> bytes:
    """A piece as SGLang's `/update_weights_from_tensor` reads it: a pickled list of names and tensors, in base64. The
    tensors are pickled whole; handles of shared memory would be smaller, but a server on a CPU dies of them."""
    tensors = [(name, tensor.detach().cpu().contiguous().clone()) for name, tensor in piece]
    return base64.b64encode(pickle.dumps(tensors, protocol=4))


def _join(host: str, listener: socket.socket, world_size: int, name: str, backend: str) -> tuple[Any, Any]:
    """(store, group), this process being rank 0.

    torch has no public way to make a group beside, or without, the default one; SGLang makes its side of it with the
    very same function.
    """
    from torch.distributed import PrefixStore, TCPStore
    from torch.distributed import distributed_c10d as c10d

    port = listener.getsockname()[1]
    # A store that is given a socket listens on that address alone, not on all of the machine's.
    store = TCPStore(
        *(host, port, world_size),
        is_master=True,
        timeout=GROUP_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )
    with _on_loopback(host):
        group, _ = c10d._new_process_group_helper(
            *(world_size, 0, [], c10d.Backend(backend), PrefixStore(name, store)),
            group_name=name,  # type: ignore[arg-type]
            timeout=GROUP_TIMEOUT,
        )
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return store, group


@contextlib.contextmanager
def _on_loopback(host: str) -> Iterator[None]:
    """Groups that are made inside listen on the loopback interface alone, if that is where the servers are."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if host == "127.0.0.1" else ()
    own = [name for name in names if name not in os.environ]
    os.environ.update(dict.fromkeys(own, "lo"))
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def own_address(urls: Sequence[str]) -> str:
    """The address of this machine at which all these servers can reach it: 127.0.0.1 only if all of them are here."""
    found = []
    for parts in map(urlsplit, urls):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((parts.hostname, parts.port))  # of a datagram socket: looks up the route, sends nothing
            found.append(str(sock.getsockname()[0]))
    return next((address for address in found if not address.startswith("127.")), found[0])
