"""The training ranks: what they say when they do not find each other, and how their exchanges go. That real ones
compute what one process does is tested with the torch backend."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from slime_core.errors import ClusterError, DataError
from slime_core.free_port import FreePort
from slime_core.runtime.actor import WorkerActor
from slime_core.runtime.actor_handles import _cause
from slime_core.tensors import interfaces
from slime_core.tensors.ranks import Ranks, backends

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"RANK": "1"},
            r"Training rank 1 \(process \d+ on .*\) did not find the other ranks at 127.0.0.1:\d+, .*: Connection refused. "
            r"Check that a rank with the number 0 \(RANK\) .* It took \d+.\d s, of at most 0.02 minutes",
        ),
        ({"RANK": "0"}, r"Training rank 0 .* rank 1 did not come. Check that 2 ranks were started .* It took \d+.\d s"),
        (
            {"RANK": "1", "MASTER_ADDR": "nowhere.invalid"},
            r"did not find the other ranks at nowhere.invalid:\d+, .*(not known|resolution|No address).* It took \d.\d s",
        ),
        (
            {"RANK": "1", "GLOO_SOCKET_IFNAME": "eth77"},
            "GLOO_SOCKET_IFNAME is 'eth77', and this machine has no such .* that reaches 127.0.0.1 is taken: lo",
        ),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2: the ranks are numbered from 0 to 1"),
        ({"RANK": "one"}, "RANK is 'one'; it must be an integer"),
        ({"RANK": "0", "MASTER_ADDR": ""}, "WORLD_SIZE is 2, but the environment variable MASTER_ADDR is not set"),
    ],
)
def test_ranks_that_do_not_find_each_other_say_so_in_time(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setitem(os.environ, "NCCL_SOCKET_IFNAME", "lo")
    port = FreePort("127.0.0.1")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.number)}
    for name, value in (common | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=message):
        Ranks.join(timeout_minutes=0.02)


def test_the_interface_announced_is_the_one_that_reaches_the_other_side_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.setenv(name, "")
    own = [(interface, address) for interface, address in interfaces.addresses() if ":" not in address]
    assert ("lo", "127.0.0.1") in own
    for interface, address in own:
        assert interfaces.announce_towards(address, 1) == (f"interface {interface}", address)
        for (
            other,
            towards,
        ) in own:  # what the ranks announce to each other does not bind what others are told, but for NCCL
            with interfaces.announcing_towards(towards, 1):
                assert [os.environ[name] for name in names] == [other, f"={interface}"]
        assert [os.environ[name] for name in names] == [interface, f"={interface}"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    assert set(interfaces.variables_towards("127.0.0.1", 1)) == {"NCCL_SOCKET_IFNAME"}
    with interfaces.announcing_towards("127.0.0.1", 1):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth77"


def test_what_nccl_is_told_stays_since_it_connects_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for interface, address in interfaces.addresses():
        if ":" not in address:
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                monkeypatch.setenv(name, "")
            with interfaces.announcing_towards(address, 1):
                pass
            assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("", f"={interface}")


def test_a_process_alone_exchanges_nothing_and_leaves_the_process_group_of_others_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    alone = Ranks.join(timeout_minutes=0.02)
    assert (alone.rank, alone.size) == (0, 1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert alone.interleave([[1.0], [2.0]]) == [[1.0], [2.0]]
        assert alone.sum(torch.ones(2)).tolist() == [1.0, 1.0]
        with alone.together():
            pass
        alone.leave()
        assert dist.is_initialized()
        Ranks(0, 2, CPU).leave()
        Ranks(0, 2, CPU).leave()
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_a_process_leaves_its_group_when_no_thread_of_gloo_holds_a_tensor_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though something refers to the group still. The thread that is late is one that another function keeps busy."""
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    kept, goes_on, late = dist.group.WORLD, threading.Event(), threading.Event()
    tensor = torch.ones(2)
    held = sys.getrefcount(tensor)

    asks = threading.get_ident()

    def be_late(_: object) -> None:
        if threading.get_ident() == asks:  # it was done before it was asked what follows
            return
        late.set()
        goes_on.wait(30)

    leaving = threading.Thread(target=Ranks(0, 2, CPU).leave)
    try:
        while not late.wait(0.1):
            dist.all_reduce(tensor, async_op=True).get_future().then(be_late)
        leaving.start()
        leaving.join(0.2)
        assert leaving.is_alive()
        assert dist.is_initialized()
    finally:
        goes_on.set()
    leaving.join(30)
    assert not dist.is_initialized()
    assert sys.getrefcount(tensor) == held
    assert kept is not None


def _together(own: Ranks, fails: bool = False) -> None:
    with own.together():
        if own.rank == 0 and fails:
            raise DataError("The file is empty.")


EXCHANGES: dict[str, tuple[Callable[[Ranks], Any], str, str]] = {
    "together": (_together, "their word that all went well", "RuntimeError: "),
    "together, failed": (partial(_together, fails=True), "their word that all went well", "The file is empty."),
    "gather": (lambda own: own.gather(1), "what they give", "RuntimeError: "),
    "sum": (lambda own: own.sum(torch.ones(3)), "their numbers", "RuntimeError: "),
    "largest": (lambda own: own.largest(torch.ones(3)), "their numbers", "RuntimeError: "),
    "interleave": (lambda own: own.interleave([[1.0]]), "their numbers", "RuntimeError: "),
    "of a library": (
        lambda own: dist.all_reduce(torch.ones(3), group=own.group),
        "their part of 'exchange'",
        "RuntimeError: ",
    ),
}
"""What rank 1 says it waited for in vain, and how the error of rank 0 begins, which comes to the exchange when rank 1 has given up."""


class _Worker:
    @staticmethod
    def exchange(name: str, own: Ranks) -> None:
        EXCHANGES[name][0](own)


def _child(rank: int, port: int, answers: Any) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    ranks, found = Ranks.join(timeout_minutes=1), {}
    actor = WorkerActor(f"rank {rank}")
    actor._worker = _Worker()
    for name in EXCHANGES:
        own = Ranks(rank, 2, CPU, dist.new_group([0, 1], timeout=timedelta(seconds=0.3)))
        if rank == 0:
            dist.barrier()
        found[name], _ = actor.call("exchange", name, own)
        if rank == 1:
            dist.barrier()
    answers.put((rank, os.getpid(), found))
    ranks.leave()


def test_a_rank_that_waits_too_long_says_for_what_and_is_believed_before_the_one_that_was_late() -> None:
    context, port = multiprocessing.get_context("spawn"), FreePort("127.0.0.1")
    answers = context.Queue()
    processes = [context.Process(target=_child, args=(rank, port.number, answers), daemon=True) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        (_, _, late), (_, pid, waiting) = sorted(answers.get(timeout=60) for _ in processes)
    finally:
        for process in processes:
            process.kill()
    for name, (_, what, beginning) in EXCHANGES.items():
        assert late[name].text.startswith(beginning), name
        assert waiting[name].text.startswith(
            f"Training rank 1 (process {pid}) has waited for the other training ranks, for {what}, "
        )
        assert ("as long as it may" if name == "of a library" else "for 0.0") in waiting[name].text
        assert "raise --distributed-timeout-minutes" in waiting[name].text
        told = str(_cause([late[name].error(), waiting[name].error()]))
        assert told == (late if late[name].expected else waiting)[name].text


def test_the_exchanges_are_those_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank of the group has the rows [10], [20]; whoever is not in the group must not count."""
    group, others = object(), torch.tensor([[[0.0], [10.0]], [[0.0], [20.0]]], dtype=torch.float64)

    def all_reduce(values: torch.Tensor, group: object) -> None:
        assert group is own.group
        values += others

    own = Ranks(0, 2, CPU, group)  # type: ignore[arg-type]
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert own.interleave([[1.0], [2.0]]) == [[1.0], [10.0], [2.0], [20.0]]


def test_tensors_of_a_gpu_never_go_by_gloo() -> None:
    assert backends(torch.device("cuda")) == "cpu:gloo,cuda:nccl"
    assert backends(torch.device("cpu")) == "gloo"
