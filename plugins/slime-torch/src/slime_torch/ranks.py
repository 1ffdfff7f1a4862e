"""The training ranks: who this process is among them, and the few exchanges that they need. Called by the backend.

The ranks find each other by the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which
whoever starts them sets. A process without WORLD_SIZE is the only rank, and nothing here then does anything.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from slime_core.errors import ClusterError, SlimeError


@dataclass(frozen=True)
class Ranks:
    """This process among the `size` ranks that train one model.

    Attributes:
        device: where this rank computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, timeout_minutes: float) -> Ranks:
        """Wait for the other ranks, the first time that it is called in this process.

        Args:
            timeout_minutes: how long, and how long any later exchange may take.

        Raises:
            ClusterError: the variables make no sense, or the others were not there in time.
        """
        size = _number("WORLD_SIZE", default=1)
        if size <= 1:
            return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        rank = _number("RANK")
        if not 0 <= rank < size:
            raise ClusterError(
                f"RANK is {rank}, but WORLD_SIZE is {size}: the ranks are numbered from 0 to {size - 1}."
            )
        device = _device()
        if not dist.is_initialized():
            _start(rank, size, device, timeout_minutes)
        elif (dist.get_rank(), dist.get_world_size()) != (rank, size):
            raise ClusterError(
                f"RANK and WORLD_SIZE are {rank} and {size}, but torch.distributed has been started as rank "
                f"{dist.get_rank()} of {dist.get_world_size()} in this process. Start it once, with these variables set."
            )
        return cls(rank, size, device)

    @staticmethod
    def leave() -> None:
        """Give back what `join` started in this process, if it is still there."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place. Adding zeros changes nothing, so tensors that are 0 where other ranks have
        something are merged exactly."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def interleave(self, rows: list[list[float]]) -> list[list[float]]:
        """The rows of all ranks, which all have as many of one length: first the first ones, rank after rank."""
        if self.size == 1:
            return rows
        table = torch.zeros(len(rows), self.size, len(rows[0]), dtype=torch.float64, device=self.device)
        table[:, self.rank] = torch.tensor(rows, dtype=torch.float64)
        return self.sum(table).flatten(0, 1).tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank inside of this fails on all, so that none waits for one that is gone."""
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        kind = type(error) if isinstance(error, SlimeError) else RuntimeError
        found: list[tuple[type[Exception], str] | None] = [None] * self.size
        dist.all_gather_object(found, None if error is None else (kind, str(error)))
        if error is not None:
            raise error
        for number, failure in enumerate(found):
            if failure is not None:
                raise failure[0](f"{failure[1]} (on training rank {number})")


def _start(rank: int, size: int, device: torch.device, timeout_minutes: float) -> None:
    host, port, timeout = _text("MASTER_ADDR"), _number("MASTER_PORT"), timedelta(minutes=timeout_minutes)
    if host == "localhost" or host.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo listens where the machine's own name leads
    try:
        # A store that is given a socket listens on that address alone, not on all of the machine's.
        own = {"master_listen_fd": _listen(host, port), "use_libuv": True} if rank == 0 else {}
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.TCPStore(host, port, size, is_master=rank == 0, timeout=timeout, **own),
            timeout=timeout,
            rank=rank,
            world_size=size,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Training rank {rank} did not find the other ranks at {host}:{port} within {timeout_minutes:g} minutes "
            f"(--distributed-timeout-minutes): {str(error).splitlines()[0]} Check that {size} ranks were started "
            "(WORLD_SIZE), each with a number of its own (RANK), and that this machine can reach that address."
        ) from error


def _listen(host: str, port: int) -> int:
    """A socket's number, which is the store's from now on."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family).detach()


def _device() -> torch.device:
    count = torch.cuda.device_count()
    if not count:
        return torch.device("cpu")
    local = _number("LOCAL_RANK", default=0)
    if count == 1:  # the one that whoever started this rank lets it see
        local = 0
    if not 0 <= local < count:
        raise ClusterError(f"LOCAL_RANK is {local}, but this process sees {count} GPUs. Start one rank for each GPU.")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _number(name: str, default: int | None = None) -> int:
    text = str(default) if default is not None and not os.environ.get(name) else _text(name)
    try:
        return int(text)
    except ValueError:
        raise ClusterError(f"The environment variable {name} is {text!r}; it must be an integer.") from None


def _text(name: str) -> str:
    if text := os.environ.get(name):
        return text
    raise ClusterError(
        f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, but the environment variable {name} is not set. A training rank "
        "needs RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."
    )
