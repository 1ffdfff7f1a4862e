"""What needs no SGLang: what is sent to it and read from it, the commands that start it, pieces and copies of weights."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang_cases as cases
import torch
from safetensors.torch import load_file

from slime_core.arguments.groups import GROUPS
from slime_core.errors import ArgumentError
from slime_engine_sglang import server, snapshot
from slime_engine_sglang.answers import (
    joined,
    read_answer,
    remaining,
    request_body,
    sampling_words,
    token_versions,
)
from slime_engine_sglang.arguments import SGLangArguments
from slime_engine_sglang.control import controls
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.placement import servers_here
from slime_engine_sglang.process import Child, free_port, tail
from slime_engine_sglang.router import Router, router_command
from slime_engine_sglang.server import server_command
from slime_engine_sglang.transports import TensorTransport, encoded, own_address
from slime_engine_sglang.weights import Samples, WeightSender, cut

GIVEN = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.9, "top_k": -1, "seed": 7}


def options(**changes: Any) -> SimpleNamespace:
    groups = [*GROUPS, SGLangArguments]
    defaults = {
        name: field.get_default(call_default_factory=True) for g in groups for name, field in g.model_fields.items()
    }
    return SimpleNamespace(**{**defaults, "hf_checkpoint": "model", **changes})


def said(tokens: list[int], reason: str = "length", **meta: Any) -> dict[str, Any]:
    pairs = [[-0.5 * n, token, None] for n, token in enumerate(tokens)]
    info = {"finish_reason": {"type": reason}, "output_token_logprobs": pairs, "weight_version": "3", **meta}
    return {"output_ids": tokens, "meta_info": info}


def test_sampling_parameters_get_sglangs_names_and_defaults():
    assert sampling_words(GIVEN, None) == {
        "max_new_tokens": 8,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": -1,
        "sampling_seed": 7,
    }
    assert sampling_words({"max_new_tokens": 2, "seed": None, "stop_token_ids": {5}}, None) == {
        "max_new_tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "stop_token_ids": [5],
    }


def test_a_response_is_limited_by_the_models_context():
    assert sampling_words({"max_new_tokens": 9, "min_new_tokens": 9}, 4)["max_new_tokens"] == 4
    assert sampling_words({"max_new_tokens": 9, "min_new_tokens": 9}, 4)["min_new_tokens"] == 4


@pytest.mark.parametrize("given", [{"max_new_tokens": 1, "top_q": 1}, {"temperature": 1.0}])
def test_unusable_sampling_parameters_are_refused(given):
    with pytest.raises(ArgumentError, match=r"top_q|max_new_tokens is missing"):
        sampling_words(given, None)


def test_a_request_asks_for_log_probs_and_no_stream():
    body = request_body((1, 2), {"max_new_tokens": 1}, "name")
    assert body["input_ids"] == [1, 2]
    assert (body["rid"], body["return_logprob"], body["stream"]) == ("name", True, False)


def test_an_answer_has_its_tokens_log_probs_and_versions():
    answer = read_answer(said([5, 6, 7], prompt_tokens=4, cached_tokens=3))
    assert (answer.tokens, answer.log_probs, answer.versions) == ([5, 6, 7], [0.0, -0.5, -1.0], [3, 3, 3])
    assert (answer.finish_reason, answer.prompt_tokens, answer.cached_tokens) == ("length", 4, 3)


def test_an_aborted_answer_keeps_the_tokens_whose_log_probs_came():
    cut_off = said([5, 6], "abort")
    cut_off["output_ids"].append(9)
    assert read_answer(cut_off).tokens == [5, 6]
    assert read_answer({"meta_info": {"finish_reason": {"type": "abort"}}}).tokens == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "no meta_info"},
        {**said([1, 2]), "output_ids": [1, 3]},
        said([1], "tired"),
        said([1, 2], weight_version="default"),
        said([1, 2], weight_versions=[{"version": "1", "start": 0, "end": 1}]),
    ],
    ids=["no meta", "other tokens", "reason", "version", "span"],
)
def test_an_answer_that_a_trainer_could_not_trust_is_an_error(wrong):
    with pytest.raises(SGLangError):
        read_answer(wrong)


def test_each_token_has_the_version_of_its_span():
    spans = [{"version": "4", "start": 0, "end": 2}, {"version": "5", "start": 2, "end": 9}]
    assert token_versions({"weight_versions": spans}, 5) == [4, 4, 5, 5, 5]
    assert token_versions({"weight_versions": spans}, 0) == []


def test_a_response_that_goes_on_asks_for_the_rest():
    sampling = sampling_words({"max_new_tokens": 8, "min_new_tokens": 2}, None)
    rest = remaining(sampling, 3)
    assert (rest["max_new_tokens"], rest["min_new_tokens"]) == (5, 0)
    whole = joined(read_answer(said([1, 2], "abort")), read_answer(said([3], "stop")))
    assert (whole.tokens, whole.versions, whole.finish_reason) == ([1, 2, 3], [3, 3, 3], "stop")


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


def test_weights_are_cut_into_pieces_of_the_given_size_in_order():
    weights = [(f"w{n}", torch.zeros(size)) for n, size in enumerate([2, 2, 9, 1, 1])]
    pieces = [[name for name, _ in piece] for piece in cut(weights, 16)]
    assert pieces == [["w0", "w1"], ["w2"], ["w3", "w4"]]


def test_a_piece_is_pickled_whole_even_if_it_is_a_view():
    matrix = torch.arange(12.0).reshape(3, 4)
    piece = encoded([("row", matrix[1]), ("turned", matrix.T)])
    assert len(piece) < 4000
    tensors = dict(pickle.loads(base64.b64decode(piece)))
    assert torch.equal(tensors["row"], matrix[1])
    assert torch.equal(tensors["turned"], matrix.T)


def test_a_snapshot_is_a_checkpoint_that_is_seen_only_when_it_is_whole(tmp_path):
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"):
        (checkpoint / name).write_text(name)
    folder = tmp_path / "weights"
    for version in (3, 4, 5):
        writing = snapshot.Snapshot(folder, str(checkpoint), version)
        writing.add([("a", torch.full((2,), float(version)))])
        writing.add([("b", torch.ones(1))])
        before = snapshot.newest(folder)
        assert before is None or before[1] == version - 1
        path = writing.publish()
        assert snapshot.newest(folder) == (path, version)
    assert sorted(p.name for p in folder.iterdir()) == ["version_0000004", "version_0000005"]
    assert sorted(p.name for p in path.iterdir()) == [
        "config.json",
        "model-00001.safetensors",
        "model-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert torch.equal(load_file(path / "model-00001.safetensors")["a"], torch.full((2,), 5.0))
    snapshot.Snapshot(folder, str(checkpoint), 6).discard()
    assert snapshot.newest(folder) == (path, 5)
    snapshot.clear(folder)
    assert snapshot.newest(folder) is None


def test_restarts_of_servers_are_counted(tmp_path):
    for url in ("http://a", "http://b", "http://a"):
        snapshot.note_start(tmp_path / "new", url)
    assert snapshot.starts(tmp_path / "new") == {"http://a": 2, "http://b": 1}
    assert snapshot.starts(tmp_path) == {}


def test_a_sender_reads_all_weights_even_if_no_server_answers(tmp_path):
    """The other training ranks would wait for ever in the collective that gathers the next tensor."""
    read = []
    weights = ((name, read.append(name) or torch.zeros(1)) for name in ("a", "b", "c"))
    sender = WeightSender([f"http://127.0.0.1:{free_port('127.0.0.1')}"], "model", tmp_path, "tensor")
    with pytest.raises(SGLangError, match="do not answer"):
        sender.send(weights, 1)
    assert read == ["a", "b", "c"]


def test_the_trainers_address_is_one_that_every_server_can_reach():
    here, elsewhere = "http://127.0.0.1:1", "http://203.0.113.1:1"  # the second is nobody's; nothing is sent
    assert own_address([here, here]) == "127.0.0.1"
    try:
        address = own_address([elsewhere])
    except OSError:
        pytest.skip("this machine has no network")
    assert own_address([here, elsewhere]) == address != "127.0.0.1"


def test_the_group_is_nccls_between_gpus_that_trainer_and_servers_do_not_share(tmp_path):
    sender = WeightSender(urls=[], checkpoint="", folder=tmp_path, transport="nccl")
    cases = [(on_gpu, shared) for on_gpu in (False, True) for shared in (False, True)]
    found = [replace(sender, on_gpu=on_gpu, shares_gpus=shared).group_backend() for on_gpu, shared in cases]
    assert found == ["gloo", "gloo", "nccl", "gloo"]


def test_the_tensor_transport_sends_pieces_of_a_limited_size_as_the_json_that_sglang_reads():
    received = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    large = torch.arange(3 * 2**20, dtype=torch.float32)  # in several parts of a body
    try:
        with controls([f"http://127.0.0.1:{server.server_port}"]) as servers:
            TensorTransport(ranks=2).send(servers, [("large", large), ("small", torch.ones(2))], 7)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (body,) = received
    first, second = body.pop("serialized_named_tensors")
    assert body == {"weight_version": "7", "flush_cache": False}
    assert first == second
    tensors = dict(pickle.loads(base64.b64decode(first)))
    assert torch.equal(tensors["large"], large)
    assert torch.equal(tensors["small"], torch.ones(2))


def test_a_server_is_not_asked_to_show_tensors_that_it_would_make_huge_lists_of():
    asked = []

    class Shows:
        url = "a server"

        def ask(self, path, body):
            asked.append(body["name"])
            return [[1.0] * 4]

    samples = Samples()
    samples.of([("embedding", torch.ones(2**21, 4)), ("norm", torch.ones(1, 4)), ("weight", torch.ones(3, 4))])
    samples.compare(Shows())
    assert asked == ["norm", "weight"]


def test_a_server_takes_its_devices_from_the_cluster_unless_it_runs_already():
    assert SGLangEngine.devices_per_server(options(rollout_num_gpus_per_engine=4)) == 4
    assert SGLangEngine.devices_per_server(options(rollout_external_engine_addrs=["10.0.0.1:30000"])) == 0


def test_a_sender_can_be_pickled(tmp_path):
    sender = WeightSender(["http://a"], "model", tmp_path, "nccl")
    assert pickle.loads(pickle.dumps(sender)) == sender


CHILD = "import os, subprocess, sys, time; print(os.getpid(), subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


until = partial(cases.until, seconds=30.0)


def pids(log: Path) -> list[int]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(word) for word in lines[1].split()] if len(lines) > 1 else []


def test_a_child_ends_with_all_that_it_started_when_it_is_closed(tmp_path):
    child = Child([sys.executable, "-c", CHILD], tmp_path / "log")
    try:
        started = until(lambda: pids(tmp_path / "log"))
        assert child.status is None
    finally:
        child.close()
    until(lambda: not any(map(alive, started)))
    assert str(started[0]) in tail(tmp_path / "log")


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    code = (
        f"import sys, time; from pathlib import Path; from slime_engine_sglang.process import Child\n"
        f"Child([sys.executable, '-c', {CHILD!r}], Path({str(tmp_path / 'log')!r})); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        started = until(lambda: pids(tmp_path / "log"))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    until(lambda: not any(map(alive, started)))


def test_a_child_that_is_killed_is_noticed_and_takes_along_what_it_started(tmp_path):
    child = Child([sys.executable, "-c", CHILD], tmp_path / "log")
    try:
        started = until(lambda: pids(tmp_path / "log"))
        os.kill(started[0], signal.SIGKILL)
        assert until(lambda: child.status) == 128 + signal.SIGKILL
        until(lambda: not alive(started[1]))
    finally:
        child.close()


def test_a_server_that_does_not_start_is_reported_with_its_log(tiny_model, tmp_path, monkeypatch):
    """Without SGLang no server starts; the message must show why."""
    args = options(hf_checkpoint=str(tiny_model), run_dir=str(tmp_path), rollout_num_gpus=1)
    monkeypatch.setattr(
        server, "server_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such model')"]
    )
    monkeypatch.setattr(Router, "start", lambda self: None)
    engine = SGLangEngine(args, servers=[server.Server(args, 0, tmp_path / "server-0.log")])
    try:
        with pytest.raises(SGLangError, match=r"ended with status 1 before it answered(.|\n)*no such model"):
            engine.weight_sender()
    finally:
        engine.close()


@pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed")
def test_without_sglang_the_engine_says_what_to_install(tiny_model, tmp_path):
    args = options(hf_checkpoint=str(tiny_model), run_dir=str(tmp_path))
    with pytest.raises(ArgumentError, match=r"sglang, which is not installed.*pip install 'sglang=="):
        SGLangEngine(args)
    with pytest.raises(ArgumentError, match=r"--sglang-… are those of SGLang.*pip install"):
        server_command(options(sglang_dtype="bfloat16"), 0, "folder", 0, "127.0.0.1", 5000, on_gpu=True)
