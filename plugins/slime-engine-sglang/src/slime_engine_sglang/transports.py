"""How weights travel from the first training rank to the servers: in the bodies of HTTP requests, or broadcast in a
process group. Each transport takes the weights in pieces; `weights.SGLangWeightSender` calls it.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import pickle
import socket
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from slime_core.tensors.interfaces import announcing_towards, variables_with_servers
from slime_core.tensors.weight_buckets import in_buckets
from slime_engine_sglang.control import ControlClient, as_json, call_all
from slime_engine_sglang.errors import SGLangError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

Piece = Sequence[tuple[str, "Tensor"]]
"""Some of the weights, as (Hugging Face name, whole tensor)."""
Backend = Literal["nccl", "gloo"]
"""What makes a process group."""

BODY_BYTES = 64 * 2**20
"""How many bytes of weights are in the body of one HTTP request. A server holds several copies of them at a time."""
GROUP_TIMEOUT = timedelta(minutes=10)
_REFUSAL_S = 0.02
"""Within so many seconds, a server that refuses to take part in a broadcast has said so."""


class Transport(Protocol):
    """How pieces of weights get to servers."""

    def open(self, servers: Sequence[ControlClient], start_counts: Mapping[str, int]) -> None:
        """Prepare to send to these servers.

        Args:
            start_counts: how often each server was started, by its URL.
        """
        raise NotImplementedError

    def send(self, servers: Sequence[ControlClient], piece: Piece, version: int) -> None:
        """Send a piece to all servers, and return when they have it."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what `open` made."""
        raise NotImplementedError


class TensorTransport:
    """Sends weights in the bodies of HTTP requests: needs no network but that of the requests, and is slow.

    Args:
        ranks: the number of tensor-parallel ranks of each server, by its address; 1 where there is none. Each rank reads an entry of its
            own.
    """

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self._ranks = ranks

    def open(self, servers: Sequence[ControlClient], start_counts: Mapping[str, int]) -> None:
        """Do nothing: there is nothing to prepare."""

    def send(self, servers: Sequence[ControlClient], piece: Piece, version: int) -> None:
        """Send a piece to all servers, and return when they have it."""
        rest = as_json({"weight_version": str(version), "flush_cache": False})
        # The JSON is put together here, since base64 needs no escapes and so need not be searched for any.
        entry, alike = b'"%b"' % serialized(piece), defaultdict[int, list[ControlClient]](list)
        for server in servers:
            alike[self._ranks.get(server.url, 1)].append(server)
        under_way = []
        for ranks, some in alike.items():
            body = b'{"serialized_named_tensors": [%b], %b' % (b", ".join([entry] * ranks), rest[1:])
            under_way.append(call_all(some, "/update_weights_from_tensor", body))
        for calls in under_way:
            calls.results()

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""


class GroupTransport:
    """Broadcasts weights in a process group whose rank 0 is the trainer and whose further ranks are those of the
    servers.

    The group is made once, and again when other servers, or newly started ones, are to be reached.

    Args:
        ranks: the number of tensor-parallel ranks of each server, by its address; 1 where there is none.
        backend: what makes the group.
    """

    def __init__(self, ranks: Mapping[str, int], backend: Backend) -> None:
        self._ranks, self._backend = ranks, backend
        self._group: ProcessGroup | None = None
        self._store: Store | None = None
        self._members: tuple[tuple[str, int], ...] = ()
        self._name = ""

    def open(self, servers: Sequence[ControlClient], start_counts: Mapping[str, int]) -> None:
        """Make the group, unless there is one with these servers, and none of them was started again since.

        Raises:
            SGLangError: a server refuses to join.
        """
        members = tuple((server.url, start_counts.get(server.url, 0)) for server in servers)
        if members == self._members:
            return
        self._leave(servers)
        host = address_for([server.url for server in servers])
        listener = socket.socket(socket.AF_INET)
        listener.bind((host, 0))
        listener.listen()
        *offsets, world_size = accumulate((self._ranks.get(server.url, 1) for server in servers), initial=1)
        port = listener.getsockname()[1]
        self._name = f"slime-weights-{time.time_ns()}"
        calls = [
            call_all(
                [server],
                "/init_weights_update_group",
                {
                    "master_address": host,
                    "master_port": port,
                    "rank_offset": offset,
                    "world_size": world_size,
                    "group_name": self._name,
                    "backend": self._backend,
                },
            )
            for offset, server in zip(offsets, servers, strict=True)
        ]
        joining = _in_thread(lambda: _make_group(host, listener, world_size, self._name, self._backend))
        while not joining.done():
            for call in calls:
                call.check()  # a server that refuses never joins
            time.sleep(0.01)
        self._store, self._group = joining.result()
        for call in calls:
            call.results()
        self._members = members

    def send(self, servers: Sequence[ControlClient], piece: Piece, version: int) -> None:
        """Broadcast a piece to all servers, and return when they have it. gloo broadcasts no floats of 8 bits: pieces that have some
        go in the bodies of requests then, with their scales.

        Raises:
            SGLangError: a server refuses. The tensors that it would have waited for are then not sent.
        """
        import torch.distributed as dist

        if self._backend == "gloo" and any(is_low_precision(tensor) for _, tensor in piece):
            for part in in_buckets(piece, BODY_BYTES):
                TensorTransport(self._ranks).send(servers, part, version)
            return

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
        calls = call_all(servers, "/update_weights_from_distributed", body)
        time.sleep(_REFUSAL_S)
        calls.check()
        for tensor in tensors:
            work = dist.broadcast(tensor, src=0, group=self._group, async_op=True)
            try:
                while not work.is_completed():
                    calls.check()
                    time.sleep(0.0005)
                work.wait()
            finally:
                del work  # it keeps the group's connections, and an error's traceback would keep it
        calls.results()

    def close(self) -> None:
        """Leave the group. The servers leave it when they end."""
        self._leave(())

    def _leave(self, servers: Sequence[ControlClient]) -> None:
        """Leave the group, and let these servers leave it."""
        if self._group is None:
            return
        import torch.distributed as dist

        for server in servers:
            with contextlib.suppress(SGLangError):  # one that was started anew is in no group
                server.call("/destroy_weights_update_group", {"group_name": self._name}, timeout=60)
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group(self._group)
        self._group, self._store, self._members = None, None, ()


def serialized(piece: Piece) -> bytes:
    """Return a piece as SGLang's `/update_weights_from_tensor` reads it: a pickled list of names and tensors, in
    base64.

    The tensors are pickled whole. Handles of shared memory would be smaller, but a server on a CPU dies of them.
    """
    tensors = [(name, tensor.detach().cpu().contiguous().clone()) for name, tensor in piece]
    stream = io.BytesIO()
    _Pickler(stream, protocol=4).dump(tensors)
    return base64.b64encode(stream.getvalue())


class _Pickler(pickle.Pickler):
    """Pickles floats of 8 bits as bytes with that dtype. torch's own form of them is one that SGLang refuses to read: it loads
    storages with `weights_only`, and torch can then load none but those that have a dtype."""

    def reducer_override(self, obj: Any) -> Any:
        import torch

        if not isinstance(obj, torch.Tensor) or not is_low_precision(obj):
            return NotImplemented
        from torch._utils import _rebuild_tensor_v3

        kind: Any = torch.TypedStorage  # which torch does not annotate
        storage = kind(wrap_storage=obj.untyped_storage(), dtype=torch.uint8, _internal=True)
        hooks: OrderedDict[str, Any] = OrderedDict()
        return _rebuild_tensor_v3, (storage, 0, obj.size(), obj.stride(), False, hooks, obj.dtype)


def is_low_precision(tensor: Tensor) -> bool:
    """Whether its numbers are floats of 8 bits."""
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def address_for(urls: Sequence[str]) -> str:
    """Return an address of this machine at which all these servers can reach it: 127.0.0.1 only if all are on it."""
    found = []
    for parts in map(urlsplit, urls):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((parts.hostname, parts.port))  # a datagram socket only looks up the route, and sends nothing
            found.append(str(sock.getsockname()[0]))
    return next((address for address in found if not address.startswith("127.")), found[0])


def _make_group(
    host: str, listener: socket.socket, world_size: int, name: str, backend: Backend
) -> tuple[Store, ProcessGroup]:
    """Make the process group of which this process is rank 0, and return its store and the group.

    torch has no public way to make a group beside, or without, the default one; SGLang makes its side of it with the
    very same function.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in __all__
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
    os.environ.update(variables_with_servers())
    with announcing_towards(host, port):
        group, _ = c10d._new_process_group_helper(
            *(world_size, 0, [], c10d.Backend(backend), PrefixStore(name, store)),
            group_name=name,  # type: ignore[arg-type]  # a name for type checkers alone
            timeout=GROUP_TIMEOUT,
        )
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return store, group


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Call `work` on a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def settle() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=settle, daemon=True).start()
    return future
