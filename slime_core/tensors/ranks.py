"""The training ranks: who this process is among them, how they meet, and the few small exchanges that every train
backend needs.

The ranks find each other by the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which
whoever starts them sets. A process without WORLD_SIZE is the only rank, and nothing here then does anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slime_core.errors import ClusterError, SlimeError
from slime_core.tensors.leaving import leave_groups
from slime_core.tensors.meeting import Meeting


@dataclass(frozen=True)
class Ranks:
    """This process among the `size` data-parallel ranks that train one model.

    Attributes:
        rank: its number, from 0.
        device: where it computes.
        group: the ranks that exchange something here; None: all that there are. A backend that cuts the model itself
            into parts makes a `Ranks` of its own, with the group of the ranks that hold the same part.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

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
                f"{dist.get_rank()} of {dist.get_world_size()} in this process. Start it once, with these variables "
                "set."
            )
        return cls(rank, size, device)

    def leave(self) -> None:
        """Leave the process group, unless this is the only rank or has left already."""
        if self.size > 1:
            leave_groups()

    def sum(self, values: Tensor) -> Tensor:
        """Add up `values` over all ranks, in place, and return them. Adding zeros changes nothing, so tensors that are
        0 where other ranks have something are merged exactly."""
        if self.size > 1:
            with in_time("their numbers"):
                dist.all_reduce(values, group=self.group)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each of `values` over all ranks, in place, and return them."""
        if self.size > 1:
            with in_time("their numbers"):
                dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def interleave(self, rows: list[list[float]]) -> list[list[float]]:
        """The rows of all ranks: the first row of each, rank after rank, then the second ones, and so on.

        Args:
            rows: of this rank. Each rank has as many, all of one length.
        """
        if self.size == 1:
            return rows
        table = torch.zeros(len(rows), self.size, len(rows[0]), dtype=torch.float64, device=self.device)
        table[:, self.rank] = torch.tensor(rows, dtype=torch.float64)
        found: list[list[float]] = self.sum(table).flatten(0, 1).tolist()
        return found

    def gather(self, value: Any, what: str = "what they give") -> list[Any]:
        """What each rank gives, in their order. For what can be pickled, and is exchanged rarely.

        Args:
            what: how an error names what is waited for.
        """
        found: list[Any] = [value] * self.size
        if self.size > 1:
            with in_time(what):
                dist.all_gather_object(found, value, group=self.group)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what fails on one rank in this context fail on all of them, so that none waits for one that is gone.

        Raises:
            SlimeError, RuntimeError: at the end of the context, on the ranks where nothing failed: what the first one
                that failed had to say.
            ClusterError: another rank did not get to the end in time.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        kind = type(error) if isinstance(error, SlimeError) else RuntimeError
        try:
            found = self.gather(None if error is None else (kind, str(error)), "their word that all went well")
        finally:
            if error is not None:  # also where the others have gone meanwhile
                raise error
        for number, failure in enumerate(found):
            if failure is not None:
                raise failure[0](f"{failure[1]} (on training rank {number})")


@contextmanager
def in_time(what: str) -> Iterator[None]:
    """Around an exchange with other training ranks: say so where they do not come to it in time.

    Args:
        what: of theirs is waited for, as an error is to name it.

    Raises:
        ClusterError: it took longer than the process group allows. Names this rank, its process and the option. The ranks that come
            late have another error, that their connections are closed.
    """
    started = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        if late := of_late_ranks(error, what, time.monotonic() - started):
            raise late from error
        raise


def of_late_ranks(error: BaseException, what: str, seconds: float | None = None) -> ClusterError | None:
    """What to say in place of an error of torch.distributed that tells that other training ranks did not come in time; None: it is
    another error.

    Args:
        what: of theirs was waited for.
        seconds: how long; None: nobody measured it.
    """
    text = str(error).lower()
    if not (isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)):
        return None
    if not dist.is_initialized() or ("timed out" not in text and "timeout" not in text):
        return None
    long = "as long as it may" if seconds is None else f"for {seconds / 60:.2g} minutes"
    return ClusterError(
        f"Training rank {dist.get_rank()} (process {os.getpid()}) has waited for the other training ranks, for {what}, {long}, and "
        "not all of them came. One may work alone for longer, as rank 0 does that reads a large checkpoint, or sends weights to an "
        "engine and writes them: then raise --distributed-timeout-minutes. If none does, one hangs; what the ranks printed last "
        "stands above."
    )


def backends(device: torch.device) -> str:
    """What `torch.distributed` is to exchange tensors by, where a rank computes on this device. Tensors of the host go by gloo in any
    case; gloo takes those of a GPU too, but some of its exchanges end the process."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _start(rank: int, size: int, device: torch.device, timeout_minutes: float) -> None:
    meeting = Meeting(rank, size, _text("MASTER_ADDR"), _number("MASTER_PORT"), timeout_minutes)
    store, timeout = meeting.hold(), timedelta(minutes=timeout_minutes)
    try:
        dist.init_process_group(
            backends(device),
            store=store,
            timeout=timeout,
            rank=rank,
            world_size=size,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise meeting.failed(f"{str(error).splitlines()[0]}.") from error


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
        f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, but the environment variable {name} is not set. A training "
        "rank needs RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."
    )
