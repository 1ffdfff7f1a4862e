"""With `--offload`, servers and trainer take turns in having the memory of the GPUs: what servers are asked, and when.

The servers here are scripted: they compute nothing, and die of what real ones die of. What real servers answer on a CPU
is tested in test_sglang_updates.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sglang_cases as cases
import torch

from slime_core.errors import ArgumentError
from slime_core.free_port import FreePort
from slime_engine_sglang import member, server
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.process import ChildProcess

LOOPBACK = "127.0.0.1"
PAUSE = ["/pause_generation", {"mode": "retract"}]
RELEASE = ["/release_memory_occupation", {"tags": ["cuda_graph", "kv_cache", "weights"]}]
RELEASE_WEIGHTS = ["/release_memory_occupation", {"tags": ["cuda_graph", "weights"]}]
RESUME_WEIGHTS = ["/resume_memory_occupation", {"tags": ["cuda_graph", "weights"]}]
RESUME_CACHE = ["/resume_memory_occupation", {"tags": ["kv_cache"]}]
CONTINUE = ["/continue_generation", {}]


def options(**changes: Any) -> Any:
    """The options of a run with `--offload` and frequent health checks."""
    often = {"rollout_health_check_interval": 0.02, "update_weight_transport": "disk"}
    return cases.options(**{**often, "offload": True, "colocate": True, **changes})


@pytest.fixture
def start(start_scripted) -> Callable[..., SGLangEngine]:
    """`start(servers)`: an engine whose servers answer."""
    return lambda servers=2, **changes: start_scripted(options(**changes), servers)


def generate(engine: SGLangEngine) -> list[int]:
    """The versions of the weights that made the tokens of a response."""
    return asyncio.run(engine.generate([1, 2], {"max_new_tokens": 1})).weight_versions


until = partial(cases.until, seconds=60.0)


def pids(tmp_path: Path, number: int = 0) -> list[int]:
    """The process id of each start of a server."""
    lines = (tmp_path / f"server-{number}.log").read_text().splitlines()
    return [int(line.split()[2].rstrip(":")) for line in lines if line.startswith("slime: process ")]


def test_memory_is_given_back_once_and_taken_once_the_cache_when_something_is_generated(start, asked):
    engine = start()
    for _ in range(2):
        engine.offload()
    for _ in range(2):
        engine.onload()
    everything = [PAUSE, RELEASE, RESUME_WEIGHTS]
    assert [asked(0), asked(1)] == [everything] * 2
    for _ in range(4):
        assert generate(engine) == [0]
    everything += [RESUME_CACHE, CONTINUE]
    for number in (0, 1):
        assert asked(number)[:5] == everything
        assert {path for path, _ in asked(number)[5:]} == {"/generate"}


def test_new_weights_arrive_before_the_cache_takes_its_memory(start, asked):
    engine = start(1)
    engine.offload()
    engine.onload()
    engine.update_weights([("some.weight", torch.ones(2))], 5)
    paths = [path for path, _ in asked()]
    assert paths.index("/resume_memory_occupation") < paths.index("/update_weights_from_disk")
    assert RESUME_CACHE not in asked()
    assert generate(engine) == [5]
    assert RESUME_CACHE in asked()


def test_weights_alone_are_given_back_if_nothing_was_generated_in_between(start, asked):
    engine = start(1)
    for _ in range(2):
        engine.offload()
        engine.onload()
    assert asked() == [PAUSE, RELEASE, RESUME_WEIGHTS, PAUSE, RELEASE_WEIGHTS, RESUME_WEIGHTS]
    assert generate(engine) == [0]


def test_a_server_without_memory_is_not_asked_whether_it_is_healthy_and_not_taken_for_dead(start, asked, tmp_path):
    engine = start(1, rollout_health_check_failures=1)
    until(lambda: len(asked(health=True)) > 5)
    engine.offload()
    seen = asked(health=True)
    time.sleep(0.3)
    assert asked(health=True) == seen
    assert seen[-1] == RELEASE
    engine.onload()
    generate(engine)
    seen = asked(health=True)
    until(lambda: len(asked(health=True)) > len(seen) + 5)
    assert engine.take_metrics()["engine_server_restarts"] == 0
    assert len(pids(tmp_path)) == 1


def test_a_server_that_dies_without_memory_is_started_when_there_is_some(start, asked, tmp_path):
    engine = start(2)
    engine.offload()
    os.kill(pids(tmp_path, 1)[0], signal.SIGKILL)
    servers = cases.fleet_of(engine)
    until(lambda: len(servers.answering) == 1)
    engine.offload()
    engine.onload()
    time.sleep(0.2)
    assert len(pids(tmp_path, 1)) == 1, "it was started while the trainer has memory"
    assert generate(engine) == [0]
    until(lambda: len(servers.answering) == 2)
    assert len(pids(tmp_path, 1)) == 2
    engine.offload()
    assert [asked(0)[-2:], asked(1)[-2:]] == [[PAUSE, RELEASE]] * 2
    assert engine.take_metrics()["engine_server_restarts"] == 1


def test_if_no_server_is_left_taking_memory_waits_for_one_with_the_newest_weights(start, tmp_path):
    engine = start(1)
    engine.update_weights([("some.weight", torch.ones(2))], 5)
    engine.offload()
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    until(lambda: not cases.fleet_of(engine).answering)
    engine.onload()
    assert len(pids(tmp_path)) == 2
    assert generate(engine) == [5]


def test_a_server_that_is_being_started_gives_back_its_memory_as_well(start, asked, tmp_path):
    engine = start(2)
    servers = cases.fleet_of(engine)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    until(lambda: len(servers.answering) == 1)
    engine.offload()
    assert len(pids(tmp_path)) == 2
    assert [asked(0)[-2:], asked(1)[-2:]] == [[PAUSE, RELEASE]] * 2


def test_a_request_waits_until_there_is_memory(start):
    engine = start(1)
    engine.offload()
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(generate(engine)))
    asking.start()
    time.sleep(0.2)
    assert not answers
    engine.onload()
    asking.join()
    assert answers == [[0]]


def test_a_server_that_does_not_answer_is_ended_so_its_memory_is_free(start, tmp_path, monkeypatch):
    monkeypatch.setattr(member, "CONTROL_TIMEOUT_S", 1.0)
    engine = start(1)
    (tmp_path / "hang").touch()
    engine.offload()
    assert not Path(f"/proc/{pids(tmp_path)[0]}").exists()
    (tmp_path / "hang").unlink()
    engine.onload()
    assert generate(engine) == [0]
    assert engine.take_metrics()["engine_server_restarts"] == 1


def test_without_fault_tolerance_that_ends_the_run(start, tmp_path, monkeypatch):
    monkeypatch.setattr(member, "CONTROL_TIMEOUT_S", 1.0)
    engine = start(1, use_fault_tolerance=False)
    (tmp_path / "hang").touch()
    with pytest.raises(SGLangError, match=r"did not give back or take its memory .*--no-use-fault-tolerance"):
        engine.offload()


def test_a_server_that_refuses_is_an_error(start, tmp_path):
    engine = start(1)
    (tmp_path / "refuse").touch()
    with pytest.raises(SGLangError, match=r"/release_memory_occupation with 400.*no memory is given back today"):
        engine.offload()


def test_servers_that_run_already_must_have_been_started_for_it(start, tmp_path):
    kept = [FreePort(LOOPBACK) for _ in range(2)]
    ports = [port.number for port in kept]
    commands = [
        [sys.executable, cases.SCRIPTED, "server", str(port), str(tmp_path / f"asked-{port}"), "0"] for port in ports
    ]
    children = [
        ChildProcess([*commands[0], *server.MEMORY_OPTIONS], tmp_path / "log"),
        ChildProcess([*commands[1], server.MEMORY_OPTIONS[0]], tmp_path / "log"),
    ]
    try:
        engine = start(0, rollout_external_engine_addrs=[f"{LOOPBACK}:{ports[0]}"])
        engine.offload()
        engine.onload()
        assert generate(engine) == [0]
        with pytest.raises(ArgumentError, match=f"{ports[1]} cannot give back .* Start it with --enable-weights-cpu"):
            start(0, rollout_external_engine_addrs=[f"{LOOPBACK}:{port}" for port in ports])
    finally:
        for child in children:
            child.close()


def test_on_a_cpu_the_error_says_what_it_needs(tiny_model, tmp_path):
    args = options(hf_checkpoint=str(tiny_model), run_dir=str(tmp_path))
    with pytest.raises(ArgumentError, match=r"--offload: .*GPUs alone .*CPU\. Leave --offload out"):
        SGLangEngine(args, servers=[server.Server(args, 0, tmp_path / "log")])
