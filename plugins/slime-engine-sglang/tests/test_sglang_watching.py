"""What becomes of a run when its router dies, or its servers do not answer. Servers and router are scripted; what becomes of real ones is
tested in test_sglang_updates.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sglang_cases as cases
import torch

from slime_core.errors import ArgumentError, CheckpointError
from slime_core.free_port import FreePort
from slime_core.run.claims import Claims
from slime_engine_sglang import requests
from slime_engine_sglang.control import control_clients
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.process import ChildProcess
from slime_engine_sglang.router import Router

until = partial(cases.until, seconds=60.0)


def generate(engine: SGLangEngine) -> list[int]:
    return asyncio.run(engine.generate([1, 2], {"max_new_tokens": 1})).tokens


def router_pid(folder: Path) -> int:
    return cases.running_pid(folder / "sglang" / "router.log")


def known(engine: SGLangEngine) -> list[bool]:
    return [member.known for member in cases.fleet_of(engine).members]


def test_a_router_that_is_started_again_serves_while_a_server_does_not_answer(start_scripted, tmp_path) -> None:
    """It takes up the other servers, and the one that hangs as soon as it answers."""
    engine = start_scripted(cases.options(rollout_health_check_interval=1000.0), 2)
    hanging = cases.running_pid(tmp_path / "server-0.log")
    os.kill(hanging, signal.SIGSTOP)
    try:
        os.kill(router_pid(tmp_path), signal.SIGKILL)
        until(lambda: len(cases.starts(tmp_path / "sglang" / "router.log")) == 2)
        assert [generate(engine) for _ in range(3)] == [[7]] * 3
        assert known(engine) == [False, True]
    finally:
        os.kill(hanging, signal.SIGCONT)
    until(lambda: all(known(engine)))
    metrics = engine.take_metrics()
    assert (metrics["engine_router_restarts"], metrics["engine_server_restarts"]) == (1, 0)


def test_a_router_that_dies_twice_and_a_server_that_starts_meanwhile_find_each_other(start_scripted, tmp_path) -> None:
    engine = start_scripted(cases.options(rollout_health_check_interval=1000.0), 2)
    os.kill(cases.running_pid(tmp_path / "server-0.log"), signal.SIGKILL)
    for count in (2, 3):
        os.kill(router_pid(tmp_path), signal.SIGKILL)
        until(lambda count=count: len(cases.starts(tmp_path / "sglang" / "router.log")) == count)
    until(lambda: len(cases.fleet_of(engine).answering) == 2 and all(known(engine)))
    assert [generate(engine) for _ in range(2)] == [[7]] * 2
    assert len(cases.starts(tmp_path / "server-0.log")) == 2, "it was started again because the router was away"


def test_a_hanging_health_check_does_not_hide_that_another_server_has_ended(start_scripted, tmp_path) -> None:
    engine = start_scripted(cases.options(rollout_health_check_interval=0.01), 2)
    hanging = cases.running_pid(tmp_path / "server-0.log")
    os.kill(hanging, signal.SIGSTOP)
    try:
        time.sleep(0.2)  # by now it is asked
        os.kill(cases.running_pid(tmp_path / "server-1.log"), signal.SIGKILL)
        cases.until(lambda: len(cases.starts(tmp_path / "server-1.log")) == 2, seconds=20.0)
    finally:
        os.kill(hanging, signal.SIGCONT)
    until(lambda: len(cases.fleet_of(engine).answering) == 2)


def test_without_fault_tolerance_servers_that_are_paused_for_long_do_not_end_the_run(start_scripted, asked) -> None:
    args = cases.options(use_fault_tolerance=False, rollout_health_check_interval=0.01, rollout_health_check_failures=1)
    engine = start_scripted(args, 1)
    with control_clients(cases.fleet_of(engine).urls) as (server,):
        server.call("/pause_generation")
        time.sleep(0.3)
        server.call("/continue_generation")
    assert generate(engine) == [7]


def test_without_fault_tolerance_the_death_of_the_router_ends_the_run(start_scripted, tmp_path) -> None:
    engine = start_scripted(cases.options(use_fault_tolerance=False), 1)
    os.kill(router_pid(tmp_path), signal.SIGKILL)
    with pytest.raises(SGLangError, match="router died"):
        generate(engine)


def test_a_router_that_runs_already_is_given_no_ports(tmp_path, monkeypatch) -> None:
    def no_port(host: str) -> Any:
        raise ArgumentError("no port is free")

    monkeypatch.setattr("slime_engine_sglang.router.FreePort", no_port)
    args = cases.options(sglang_router_ip="10.0.0.1", sglang_router_port=5000)
    assert Router(args, tmp_path / "log").url == "http://10.0.0.1:5000"
    with pytest.raises(ArgumentError, match="no port"):
        Router(cases.options(), tmp_path / "log")


def test_servers_with_little_memory_are_asked_for_what_they_can_hold(start_scripted, asked, caplog) -> None:
    """They refuse longer requests, which would end the run: a conversation that grows beyond them is cut off."""
    engine = start_scripted(cases.options(), 1)
    answers = cases.ask(engine, *(list(range(1, length + 1)) for length in (93, 94, 120)), max_new_tokens=50)
    assert [(answer.tokens, answer.finish_reason) for answer in answers] == [
        ([7], "length"),
        ([], "length"),
        ([], "length"),
    ]
    sampling = [body["sampling_params"]["max_new_tokens"] for path, body in asked() if path == "/generate"]
    assert sampling == [5]
    assert "of up to 100 tokens together" in caplog.text


def test_requests_are_sent_again_until_health_checks_find_that_an_external_server_is_gone(
    start_scripted, tmp_path, monkeypatch
) -> None:
    """Only they notice it. Somebody starts it again."""
    monkeypatch.setattr(requests, "ATTEMPTS", 1)
    port = FreePort("127.0.0.1")
    command = [sys.executable, cases.SCRIPTED, "server", str(port.number), str(tmp_path / "asked"), "0"]
    server = ChildProcess(command, tmp_path / "log")
    often = {"rollout_health_check_interval": 0.3, "rollout_health_check_failures": 2}
    args = cases.options(rollout_external_engine_addrs=[f"127.0.0.1:{port.number}"], **often)
    try:
        engine = start_scripted(args, 0)
        server.close()
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(generate, engine)
            until(lambda: not cases.fleet_of(engine).answering)
            server = ChildProcess(command, tmp_path / "log")
            assert answer.result() == [7]
    finally:
        server.close()


@pytest.fixture
def external(tmp_path) -> Iterator[Callable[..., str]]:
    """`external(option, …)`: the address of a scripted server that somebody else has started with these options."""
    children: list[ChildProcess] = []
    with contextlib.ExitStack() as ports:

        def start(*options: str) -> str:
            port = FreePort("127.0.0.1")
            asked = str(tmp_path / f"external-{len(children)}")
            words = [sys.executable, cases.SCRIPTED, "server", str(port.number), asked, "0", *options]
            children.append(ChildProcess(words, tmp_path / "log"))
            ports.callback(children[-1].close)
            return f"127.0.0.1:{port.number}"

        yield start


def test_external_servers_of_several_ranks_get_weights_whatever_their_number(start_scripted, external) -> None:
    """Nobody but the servers knows how many ranks they have."""
    addresses = [external("--tp-size=3"), external(), external("--tp-size=2", "--pp-size=1")]
    engine = start_scripted(cases.options(rollout_external_engine_addrs=addresses), 0)
    for version, transport in enumerate(("nccl", "tensor"), start=1):
        sender = engine.weight_sender()
        sender.transport, sender.tolerant = transport, False
        assert list(sender.ranks.values()) == [3, 1, 2]
        try:
            sender.send(iter([("norm", torch.full((4,), float(version)))]), version)
        finally:
            sender.close()
        with control_clients(sender.urls) as servers:
            shown = [server.call("/get_weights_by_name", {"name": "norm", "truncate_size": 1}) for server in servers]
        assert shown == [[version]] * 3


def test_an_external_server_with_pipeline_stages_is_refused_where_no_group_would_form(start_scripted, external) -> None:
    address = external("--tp-size=1", "--pp-size=2")
    options = cases.options(rollout_external_engine_addrs=[address])
    with pytest.raises(ArgumentError, match=r"has 2 pipeline stages.*Give --update-weight-transport disk or tensor"):
        start_scripted(options, 0)
    options.update_weight_transport = "disk"
    start_scripted(options, 0)


def test_a_folder_of_weights_belongs_to_one_engine(start_scripted, tmp_path) -> None:
    options = cases.options(rollout_health_check_interval=1000.0, update_weight_disk_dir=str(tmp_path / "shared"))
    shared = tmp_path / "shared"
    others = [shared / name / "metrics.csv" for name in ("version_0", "version_final", "version_0000001", ".version_1")]
    others += [shared / "server_starts.json", shared / ".updating"]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("of somebody else")
    engine = start_scripted(options, 1)
    assert {other.read_text() for other in others} == {"of somebody else"}
    with pytest.raises(CheckpointError, match=r"--update-weight-disk-dir .* belongs to a run that is going on"):
        start_scripted(options, 1)
    engine.close()
    start_scripted(options, 1).close()
    with Claims() as claims:
        claims.claim("--run-dir", tmp_path)
        options.update_weight_disk_dir = str(tmp_path)
        start_scripted(options, 1)
