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


def test_servers_share_the_gpus_of_the_rollout(tmp_path):
    args = options(rollout_num_gpus=4, rollout_num_gpus_per_engine=2)
    servers = servers_here(args, tmp_path, ["0", "1", "4", "5", "7"])
    assert [server._gpus for server in servers] == [["1", "4"], ["5", "7"]]
    assert len({server.url for server in servers}) == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rollout_num_gpus": 3, "rollout_num_gpus_per_engine": 2}, "cannot be divided"),
        ({"rollout_num_gpus": 4}, "this machine shows 2 GPUs"),
    ],
)
def test_a_number_of_gpus_that_does_not_fit_is_refused(tmp_path, changes, text):
    with pytest.raises(ArgumentError, match=text):
        servers_here(options(**changes), tmp_path, ["0", "1"])


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
