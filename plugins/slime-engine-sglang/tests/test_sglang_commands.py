"""Where servers and router are started, with which command lines, and what must be installed. Needs no SGLang."""

from __future__ import annotations

import contextlib
import sys
from importlib.util import find_spec

import pytest
from sglang_cases import options

from slime_core.errors import ArgumentError
from slime_engine_sglang import server
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.fleet import _external_url
from slime_engine_sglang.placement import servers_here
from slime_engine_sglang.router import Router, router_command
from slime_engine_sglang.server import server_command


def test_the_command_of_a_server_names_weights_place_and_seed():
    command = server_command(options(rollout_num_gpus_per_engine=2), 1, "folder", 7, "127.0.0.1", 5000, on_gpu=True)
    assert command[:3] == [sys.executable, "-m", "sglang.launch_server"]
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert (given["--model-path"], given["--tokenizer-path"], given["--weight-version"]) == ("folder", "model", "7")
    assert (given["--port"], given["--tp-size"], given["--random-seed"]) == ("5000", "2", "43")
    assert "--device" not in given


def test_the_command_of_a_server_without_gpu_computes_on_the_cpu_in_float32():
    command = server_command(options(), 0, "folder", 0, "127.0.0.1", 5000, on_gpu=False)
    assert command[command.index("--device") + 1] == "cpu"
    assert command[command.index("--dtype") + 1] == "float32"
    assert {"--max-total-tokens", "--sleep-on-idle"} <= set(command)


def test_a_server_that_takes_turns_with_the_trainer_can_give_back_memory_and_keeps_its_weights():
    for changes, number in (({"offload": True, "colocate": True}, 1), ({"offload": True}, 0), ({"colocate": True}, 0)):
        command = server_command(options(**changes), 0, "folder", 0, "127.0.0.1", 5000, on_gpu=True)
        assert [command.count(f) for f in ("--enable-memory-saver", "--enable-weights-cpu-backup")] == [number] * 2


def test_servers_run_the_checkpoints_own_code_where_the_run_may():
    for trusted, number in ((True, 1), (False, 0)):
        args = options(trust_remote_code=trusted)
        command = server_command(args, 0, "folder", 0, "127.0.0.1", 5000, on_gpu=True)
        assert command.count("--trust-remote-code") == number


@pytest.mark.parametrize("transport", ["nccl", "tensor", "disk"])
def test_pipeline_stages_are_refused_where_no_group_would_form(monkeypatch, transport):
    monkeypatch.setattr(server, "command_line", lambda *_: ["--pp-size", "2"])
    args = options(rollout_num_gpus_per_engine=4, update_weight_transport=transport)
    refused = transport == "nccl"
    with pytest.raises(ArgumentError, match="which then never forms") if refused else contextlib.nullcontext():
        command = server_command(args, 0, "folder", 0, "127.0.0.1", 5000, on_gpu=True)
        assert command[command.index("--tp-size") + 1] == "2"


def test_the_router_leaves_repeating_requests_to_the_engine():
    command = router_command(options(), "127.0.0.1", 5000, 5001)
    assert {"--disable-retries", "--disable-circuit-breaker"} <= set(command)
    assert command[command.index("--policy") + 1] == "cache_aware"


@pytest.mark.parametrize(
    ("changes", "gpus", "placed"),
    [
        ({"rollout_num_gpus": 4, "rollout_num_gpus_per_engine": 2}, "01457", [["1", "4"], ["5", "7"]]),
        ({"rollout_num_gpus": 1}, "013", [["1"]]),
        ({}, "01", [["1"]]),
        ({"rollout_num_gpus": 1, "colocate": True}, "01", [["0"]]),
        ({"colocate": True}, "01", [["0"], ["1"]]),
        ({"rollout_num_gpus": 2, "debug_rollout_only": True}, "01", [["0"], ["1"]]),
        ({"rollout_num_gpus": 2}, "", [[], []]),
    ],
)
def test_servers_are_on_the_gpus_that_training_leaves_or_shares(tmp_path, changes, gpus, placed):
    servers = servers_here(options(**changes), tmp_path, list(gpus))
    assert [server._gpus for server in servers] == placed
    assert len({server.url for server in servers}) == len(placed)


@pytest.mark.parametrize(
    ("changes", "gpus", "text"),
    [
        ({"rollout_num_gpus": 3, "rollout_num_gpus_per_engine": 2}, "01", "cannot be divided"),
        ({"rollout_num_gpus": 4, "colocate": True}, "01", r"need 4 GPUs .* shows 2\.$"),
        ({"rollout_num_gpus": 4, "debug_rollout_only": True}, "01", r"need 4 GPUs .* shows 2\.$"),
        ({"rollout_num_gpus": 2}, "01", "shows 2, the first of which trains. With --colocate"),
        ({}, "0", "need 1 GPUs .* shows 1, the first of which trains. With --colocate"),
    ],
)
def test_a_number_of_gpus_that_does_not_fit_is_refused(tmp_path, changes, gpus, text):
    with pytest.raises(ArgumentError, match=text):
        servers_here(options(**changes), tmp_path, list(gpus))


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.0.0.1:30000", "http://10.0.0.1:30000"),
        ("http://host:30000/", "http://host:30000"),
        ("http://host", "http://host:80"),
        ("host", "http://host:80"),
        ("https://host/behind/", "https://host:443/behind"),
        ("[::1]:1", "http://[::1]:1"),
    ],
)
def test_an_external_server_has_the_port_of_its_scheme_where_it_names_none(address, url):
    assert _external_url(address) == url


@pytest.mark.parametrize("address", ["", "http://", ":30000", "host:port", "host:99999", "host:0", "ftp://host"])
def test_an_address_that_is_that_of_no_server_is_refused(address):
    with pytest.raises(ArgumentError, match=f"{address!r} is not the address of a server. Give HOST:PORT"):
        _external_url(address)


def test_a_router_of_ones_own_needs_its_port(tmp_path):
    with pytest.raises(ArgumentError, match="--sglang-router-port"):
        Router(options(sglang_router_ip="127.0.0.1"), tmp_path / "log")


def test_a_server_takes_its_devices_from_the_cluster_unless_it_runs_already():
    assert SGLangEngine.devices_per_server(options(rollout_num_gpus_per_engine=4)) == 4
    assert SGLangEngine.devices_per_server(options(rollout_external_engine_addrs=["10.0.0.1:30000"])) == 0


@pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed")
def test_without_sglang_the_engine_says_what_to_install(tiny_model, tmp_path):
    args = options(hf_checkpoint=str(tiny_model), run_dir=str(tmp_path))
    with pytest.raises(ArgumentError, match=r"sglang, which is not installed.*pip install 'sglang=="):
        SGLangEngine(args)
    with pytest.raises(ArgumentError, match=r"--sglang-… are those of SGLang.*pip install"):
        server_command(options(sglang_dtype="bfloat16"), 0, "folder", 0, "127.0.0.1", 5000, on_gpu=True)
