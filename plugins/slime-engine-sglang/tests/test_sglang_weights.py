"""Pieces and copies of weights, and what is sent of them to servers. Needs no SGLang."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pickle
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sglang_cases import arguments, until

from slime_core.contracts.precision import Hardware
from slime_core.data.quantised_checkpoints import quantised_checkpoint
from slime_core.errors import ArgumentError
from slime_core.free_port import FreePort
from slime_core.plugins import Plugins
from slime_core.tensors import interfaces
from slime_core.tensors.quantised_weights import quantised_like
from slime_engine_sglang import low_precision, snapshot
from slime_engine_sglang.control import control_clients
from slime_engine_sglang.errors import SGLangError, Unreachable
from slime_engine_sglang.process import ChildProcess
from slime_engine_sglang.samples import WeightSamples
from slime_engine_sglang.server import Server
from slime_engine_sglang.transports import TensorTransport, _make_group, address_for, serialized
from slime_engine_sglang.weights import SGLangWeightSender
from slime_fp8.convert import to_fp8
from slime_fp8.weight_formats import FORMATS

SCRIPTED = str(Path(__file__).with_name("scripted_sglang.py"))


def test_servers_that_start_at_the_same_time_are_all_counted(tmp_path):
    urls = [f"http://127.0.0.1:{n}" for n in range(8)]
    with ThreadPoolExecutor(len(urls)) as threads:
        list(threads.map(lambda url: [snapshot.count_start(tmp_path, url) for _ in range(25)], urls))
    assert snapshot.start_counts(tmp_path) == dict.fromkeys(urls, 25)


def test_a_piece_is_pickled_whole_even_if_it_is_a_view():
    matrix = torch.arange(12.0).reshape(3, 4)
    piece = serialized([("row", matrix[1]), ("turned", matrix.T)])
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
        snapshot.count_start(tmp_path / "new", url)
    assert snapshot.start_counts(tmp_path / "new") == {"http://a": 2, "http://b": 1}
    assert snapshot.start_counts(tmp_path) == {}


def test_a_sender_reads_all_weights_even_if_no_server_answers(tmp_path):
    """The other training ranks would wait for ever in the collective that gathers the next tensor."""
    read = []
    weights = ((name, read.append(name) or torch.zeros(1)) for name in ("a", "b", "c"))
    nobody = FreePort("127.0.0.1")
    sender = SGLangWeightSender([f"http://127.0.0.1:{nobody.number}"], "model", tmp_path, "tensor")
    with pytest.raises(SGLangError, match="do not answer"):
        sender.send(weights, 1)
    assert read == ["a", "b", "c"]


def test_the_trainers_address_is_one_that_every_server_can_reach():
    here, elsewhere = "http://127.0.0.1:1", "http://203.0.113.1:1"  # the second is nobody's; nothing is sent
    assert address_for([here, here]) == "127.0.0.1"
    try:
        address = address_for([elsewhere])
    except OSError:
        pytest.skip("this machine has no network")
    assert address_for([here, elsewhere]) == address != "127.0.0.1"


def test_a_server_announces_the_interface_of_the_address_that_it_serves_at(tmp_path, monkeypatch):
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for interface, address in interfaces.addresses():
        if ":" not in address:
            variables = Server(arguments(tmp_path, tmp_path), 0, tmp_path / "log", address)._environment()
            assert [variables[name] for name in names] == [interface, f"={interface}"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    assert "GLOO_SOCKET_IFNAME" not in Server(arguments(tmp_path, tmp_path), 0, tmp_path / "log")._environment()


@pytest.mark.parametrize("own", [{}, {"NCCL_CUMEM_ENABLE": "1"}])
def test_nccl_has_the_same_settings_in_trainer_and_servers(tmp_path, monkeypatch, own):
    for name in ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is set back at the end
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    expected = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0", **own}
    of_server = {**os.environ, **Server(arguments(tmp_path, tmp_path), 0, tmp_path / "log")._environment()}
    assert {name: of_server[name] for name in expected} == expected
    listener = socket.create_server(("127.0.0.1", 0))
    _, group = _make_group("127.0.0.1", listener, 1, "alone", "gloo")
    torch.distributed.destroy_process_group(group)
    assert {name: os.environ[name] for name in expected} == expected


def test_the_group_is_nccls_between_gpus_that_trainer_and_servers_do_not_share(tmp_path):
    sender = SGLangWeightSender(urls=[], checkpoint="", folder=tmp_path, transport="nccl")
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
        with control_clients([f"http://127.0.0.1:{server.server_port}"]) as servers:
            TensorTransport({server.url: 2 for server in servers}).send(
                servers, [("large", large), ("small", torch.ones(2))], 7
            )
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

        def call(self, path, body):
            asked.append(body["name"])
            return [[1.0] * 4]

    samples = WeightSamples()
    samples.take([("embedding", torch.ones(2**21, 4)), ("norm", torch.ones(1, 4)), ("weight", torch.ones(3, 4))])
    samples.compare(Shows())
    assert asked == ["norm", "weight"]


def test_a_sender_can_be_pickled(tmp_path):
    sender = SGLangWeightSender(["http://a"], "model", tmp_path, "nccl")
    assert pickle.loads(pickle.dumps(sender)) == sender


@pytest.fixture
def scripted(tmp_path):
    """The addresses of two scripted servers, which append what they are asked to the files asked-0 and asked-1."""
    kept = [FreePort("127.0.0.1") for _ in range(2)]
    ports = [port.number for port in kept]
    words = [
        [sys.executable, SCRIPTED, "server", str(port), str(tmp_path / f"asked-{n}")] for n, port in enumerate(ports)
    ]
    children = [ChildProcess([*command, "0"], tmp_path / "log") for command in words]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with control_clients(urls) as servers:
        until(lambda: all(server.answers() for server in servers), 60)
    yield urls
    for child in children:
        child.close()


def test_the_group_transport_broadcasts_every_version_to_all_servers_in_one_group(scripted, tmp_path):
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", "nccl", piece_bytes=64, tolerant=False)
    weights = {"norm": torch.rand(4), "head": torch.rand(8, 4), "half": torch.rand(3).bfloat16()}
    try:
        for version in (1, 2):
            weights = {name: tensor + version for name, tensor in weights.items()}
            sender.send(iter(weights.items()), version)
            with control_clients(scripted) as servers:
                assert [server.version() for server in servers] == [version] * 2
                for name, tensor in weights.items():
                    for server in servers:
                        shown = server.call("/get_weights_by_name", {"name": name, "truncate_size": 100})
                        assert torch.equal(torch.tensor(shown, dtype=tensor.dtype), tensor)
    finally:
        sender.close()
    paths = [json.loads(line)[0] for line in (tmp_path / "asked-0").read_text().splitlines()]
    assert paths.count("/init_weights_update_group") == 1
    assert paths.count("/update_weights_from_distributed") == 2 * 3
    assert [path for path in paths if "generation" in path] == ["/pause_generation", "/continue_generation"] * 2


@pytest.fixture(scope="module")
def in_fp8(tiny_model, tmp_path_factory):
    """The tiny model in FP8, by strategy."""
    parent = tmp_path_factory.mktemp("fp8")
    for strategy, format in FORMATS.items():
        to_fp8(tiny_model, parent / strategy, format)
    return {strategy: parent / strategy for strategy in FORMATS}


@pytest.mark.parametrize("strategy", FORMATS)
@pytest.mark.parametrize("transport", ["nccl", "tensor", "disk"])
def test_weights_in_low_precision_arrive_as_the_converter_writes_them(
    scripted, tiny_model, in_fp8, tmp_path, transport, strategy
):
    """Names, dtypes, shapes and bytes, on every way. The group is gloo's here, which broadcasts no floats of 8 bits itself."""
    served = quantised_checkpoint(str(in_fp8[strategy]), Plugins())
    assert served is not None
    weights = {name: t for file in tiny_model.glob("*.safetensors") for name, t in load_file(file).items()}
    sender = SGLangWeightSender(
        scripted,
        served.folder,
        tmp_path / "weights",
        transport,
        piece_bytes=20_000,
        tolerant=False,
        checks_equal=False,
    )
    try:
        sender.send(quantised_like(weights.items(), served), 1)
    finally:
        sender.close()
    expected = {n: t for file in in_fp8[strategy].glob("*.safetensors") for n, t in load_file(file).items()}
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in expected.values())
    if transport == "disk":
        asked = [json.loads(line) for line in (tmp_path / "asked-0").read_text().splitlines()]
        (folder,) = [Path(body["model_path"]) for path, body in asked if path == "/update_weights_from_disk"]
        found = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
        assert described(found) == described(expected)
        assert (folder / "config.json").read_text() == (in_fp8[strategy] / "config.json").read_text()
        return
    with control_clients(scripted) as servers:
        for server in servers:
            (rank,) = server.call("/weights_checker", {"action": "checksum"})["ranks"]
            assert rank["checksums"] == described(expected)


H200, A100 = Hardware("NVIDIA H200", (9, 0), (12, 9)), Hardware("NVIDIA A100", (8, 0), (12, 9))


@pytest.mark.parametrize(
    ("strategy", "hardware", "why"),
    [
        (
            "block",
            Hardware("CPU"),
            r"capability 8\.0 or higher, or a CPU with AMX; CPU has none\. Give --rollout-engine local",
        ),
        ("channel", Hardware("CPU"), r"capability 8\.9 or higher; CPU has none"),
        ("tensor", A100, r"capability 8\.9 or higher; NVIDIA A100 has 8\.0"),
        ("mxfp8", H200, r"'mxfp8'.*capability 10\.0 or higher; NVIDIA H200 has 9\.0"),
        ("block", A100, ""),
        ("channel", H200, ""),
    ],
)
def test_what_sglang_cannot_serve_here_is_refused_when_options_are_read(
    in_fp8, tmp_path, monkeypatch, strategy, hardware, why
):
    monkeypatch.setattr("slime_core.runtime.hardware.visible_hardware", lambda: hardware)
    monkeypatch.setattr(low_precision, "_cpu_flags", lambda: "avx512f")
    if not why:
        assert arguments(in_fp8[strategy], tmp_path).hf_checkpoint == str(in_fp8[strategy])
        return
    with pytest.raises(ArgumentError, match=why):
        arguments(in_fp8[strategy], tmp_path)
    arguments(in_fp8[strategy], tmp_path, "--rollout-engine", "local")
    arguments(in_fp8[strategy], tmp_path, "--ray-address", "10.0.0.7:6379")  # machines of a cluster find out
    monkeypatch.setattr(low_precision, "_cpu_flags", lambda: "avx512f amx_tile")
    if (strategy, hardware.capability) == ("block", None):
        arguments(in_fp8[strategy], tmp_path)


def test_a_server_that_dies_in_a_broadcast_does_not_keep_the_others_waiting(scripted, tmp_path):
    """They wait for the rest of it, and hear of nothing else until the trainer has left the group."""
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", "nccl", piece_bytes=64)
    sender.send(iter([("norm", torch.ones(4))]), 1)
    (tmp_path / "asked-1.dies").touch()
    started = time.monotonic()
    try:
        sender.send(iter([(f"weight-{n}", torch.full((16,), float(n))) for n in range(4)]), 2)
    finally:
        sender.close()
    assert time.monotonic() - started < 180, "the other server waited for its group to give up, after four minutes"
    with control_clients(scripted) as servers:
        assert [server.version() for server in servers] == [2, None]
        shown = servers[0].call("/get_weights_by_name", {"name": "weight-3", "truncate_size": 100})
    assert shown == [3.0] * 16


def test_a_server_that_begins_no_update_does_not_leave_one_open_in_the_others(scripted, tmp_path):
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", "tensor", tolerant=False)
    weights = [("norm", torch.ones(4))]
    try:
        with control_clients(scripted) as servers:
            servers[1].call("/begin_weight_update")
            with pytest.raises(SGLangError, match="already open"):
                sender.send(iter(weights), 1)
            servers[1].call("/end_weight_update")
            sender.send(iter(weights), 1)
            assert [server.version() for server in servers] == [1, 1]
    finally:
        sender.close()


def described(tensors):
    """Dtype, shape and a digest of the bytes of every tensor, as the scripted servers tell them."""
    return {
        name: [str(t.dtype), list(t.shape), hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest()]
        for name, t in tensors.items()
    }


def test_sglang_reads_pieces_in_low_precision():
    """Its own reader refuses what it does not know, such as torch's pickles of floats of 8 bits."""
    common = pytest.importorskip("sglang.srt.utils.common", reason="needs SGLang")
    tensors = {
        "e4m3": torch.arange(12.0).reshape(3, 4).to(torch.float8_e4m3fn),
        "exponents": torch.ones(3, dtype=torch.uint8),
    }
    tensors |= {"e5m2": torch.ones(2).to(torch.float8_e5m2), "scale": torch.rand(3, 1)}
    read = dict(common.safe_pickle_loads(base64.b64decode(serialized(list(tensors.items())))))
    assert described(read) == described(tensors)


def test_a_server_that_has_other_weights_than_it_was_sent_ends_the_update(scripted, tmp_path):
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", "nccl", tolerant=False)
    sender.send(iter([("norm", torch.ones(4))]), 1)
    samples = WeightSamples()
    samples.take([("norm", torch.full((4,), 1.5))])
    try:
        with (
            control_clients(scripted) as servers,
            pytest.raises(SGLangError, match="has another norm than it was sent"),
        ):
            samples.compare(servers[1])
    finally:
        sender.close()


@pytest.mark.parametrize("tolerant", [True, False])
def test_a_server_that_dies_while_checksums_are_compared_is_left_to_the_fleet(scripted, tmp_path, tolerant):
    folder = tmp_path / "weights"
    sender = SGLangWeightSender(scripted, str(tmp_path), folder, "tensor", tolerant=tolerant, checks_equal=True)
    sender.send(iter([("norm", torch.ones(4))]), 1)
    (tmp_path / "asked-1.dies").touch()
    with contextlib.nullcontext() if tolerant else pytest.raises(Unreachable, match="weights_checker"):
        sender.send(iter([("norm", torch.zeros(4))]), 2)
    with control_clients(scripted) as servers:
        assert [server.version() for server in servers] == [2, None]


@pytest.mark.parametrize("servers", [1, 2])
def test_a_tensor_that_does_not_arrive_is_seen_at_the_first_update(scripted, tmp_path, servers):
    """With one server, too, and where the update before left the right weights: so that all are overwritten first."""
    urls, loaded = scripted[:servers], [("norm", torch.ones(4)), ("fused.bias", torch.zeros(2))]
    SGLangWeightSender(urls, str(tmp_path), tmp_path / "weights", "tensor").send(iter(loaded), 0)

    def first_update(weights, version=0):
        SGLangWeightSender(urls, str(tmp_path), tmp_path / "weights", "tensor", checks_equal=True).send(
            iter(weights), version
        )

    first_update(loaded)
    (tmp_path / "lost").write_text("fused.bias")
    with pytest.raises(SGLangError, match=r"--check-weight-update-equal: after the first update .* has other weights"):
        first_update(loaded)
    (tmp_path / "lost").unlink()
    with pytest.raises(SGLangError, match="the trainer began with others"):
        first_update([("norm", torch.ones(4)), ("fused.bias", torch.ones(2))])
    first_update([("norm", torch.zeros(4)), ("fused.bias", torch.ones(2))], version=1)  # of a run that goes on


def test_checksums_that_servers_do_not_tell_are_not_equal(scripted, tmp_path):
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", "disk", checks_equal=True)
    with pytest.raises(SGLangError, match="tells no checksums"):
        sender.send(iter([]), 1)


@pytest.mark.parametrize("transport", ["nccl", "tensor", "disk"])
def test_a_trainer_that_fails_half_way_ends_the_update_and_leaves_no_copy(scripted, tmp_path, transport):
    """Its error must not pass for one of the way to the servers, which would load what there is of a copy."""
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", transport, piece_bytes=16)

    def weights():
        yield "norm", torch.ones(4)
        raise RuntimeError("CUDA out of memory")

    try:
        sender.send(iter([("norm", torch.zeros(4)), ("head", torch.zeros(4))]), 1)
        with pytest.raises(RuntimeError, match="out of memory"):
            sender.send(weights(), 2)
    finally:
        sender.close()
    newest = snapshot.newest(tmp_path / "weights")
    assert newest is not None
    assert newest[1] == 1


def test_a_server_that_answers_late_loads_the_copy_while_it_is_paused_and_forgets_its_prompts(scripted, tmp_path):
    """Not paused, it would load nothing before its requests have ended, and go on with what the old weights made of their prompts."""
    sender = SGLangWeightSender(scripted, str(tmp_path), tmp_path / "weights", "tensor")
    with control_clients(scripted) as servers:
        sender._send(servers[:1], servers, iter([("norm", torch.ones(4))]), 3)
        assert [server.version() for server in servers] == [3, 3]
    paths = [json.loads(line)[0] for line in (tmp_path / "asked-1").read_text().splitlines()]
    assert paths[:4] == ["/pause_generation", "/update_weights_from_disk", "/flush_cache", "/continue_generation"]
