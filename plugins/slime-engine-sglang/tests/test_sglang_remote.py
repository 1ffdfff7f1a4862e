"""A server in an actor of a real Ray cluster on this machine. It fails to start, since SGLang is not installed. What
servers do in actors is tested in test_sglang_cluster.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import sglang_cases as cases

from slime_core.errors import ArgumentError
from slime_core.runtime.slots import Slot, set_engine_slots
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.placement import servers_of_run
from slime_engine_sglang.router import Router

# Ray must not be imported before a cluster is prepared.
pytestmark = [
    pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray"),
]


@pytest.fixture(scope="module")
def slot():
    """A slot of a cluster with one CPU, which pretends to have two GPUs."""
    from slime_core.runtime.connect import prepare, start_local

    prepare("local")
    import ray
    from ray.util.placement_group import placement_group

    start_local(num_cpus=1, num_gpus=0, object_store_memory=100 * 1024 * 1024)
    group = placement_group([{"CPU": 1}])
    yield Slot(group, 0, {"CPU": 1}, gpus=("6", "7"))
    ray.shutdown()


@pytest.fixture
def options(tiny_model, tmp_path) -> Callable[..., Any]:
    """`options(**changes)`: the options of a run in a folder of its own."""
    return partial(cases.options, hf_checkpoint=str(tiny_model), run_dir=str(tmp_path))


@pytest.fixture
def server(slot, options, tmp_path):
    """The server as the engine makes it in its slot."""
    set_engine_slots([slot])
    try:
        (server,) = servers_of_run(options(), tmp_path)
    finally:
        set_engine_slots([])
    yield server
    server.close()


until = partial(cases.until, seconds=60.0)


def pid_of(actor: Any) -> int:
    return os.getpid()


def test_an_engine_says_why_the_server_in_its_slot_did_not_start(server, options, monkeypatch):
    monkeypatch.setattr(Router, "start", lambda self: None)
    engine = SGLangEngine(options(), servers=[server])
    try:
        with pytest.raises(SGLangError, match=r"ended with status 1 before it answered(.|\n)*No module named"):
            engine.weight_sender()
    finally:
        engine.close()


def test_an_actor_that_died_is_noticed_and_made_again_with_the_same_address(server, tmp_path):
    import ray

    log = tmp_path / "server-0.log"
    url, pid = server.url, ray.get(server._actor.__ray_call__.remote(pid_of))
    address = ray.util.get_node_ip_address()
    assert url.startswith(f"http://{address}:")
    assert server.on_gpu, "the slot has two GPUs"
    assert server.start("folder", 0) == url
    assert until(server.status) == 1
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: server.status() == -1)
    assert f"The Ray actor of SGLang server 0 on {address} is not there" in server.log_tail()
    assert "No module named" in server.log_tail()
    assert server.start("folder", 3) == url
    assert ray.get(server._actor.__ray_call__.remote(pid_of)) != pid
    until(lambda: f"--weight-version 3 --host 127.0.0.1 --port {url.rpartition(':')[2]}" in log.read_text())


def test_an_error_in_the_actor_keeps_its_type_and_text(slot, options, tmp_path):
    from slime_engine_sglang.remote import RemoteServer

    server = RemoteServer(options(sglang_dtype="bfloat16"), 0, tmp_path / "log", slot)
    try:
        with pytest.raises(ArgumentError, match=r"--sglang-… are those of SGLang.*pip install"):
            server.start("folder", 0)
    finally:
        server.close()
