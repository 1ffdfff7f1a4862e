"""New weights, memory and the loss of two real SGLang servers behind the real router, on CPUs. `scripts/test-sglang.sh`
makes the environment and runs this.

The tests share the servers and run in this order: what is asked of healthy servers first, what kills them last.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request

import pytest
import sglang_cases as cases
import torch
from sglang_cases import LONG, ask, difference, running_pid, until

from slime_core.errors import ArgumentError

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

from slime_engine_sglang.control import control_clients
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.samples import WeightSamples
from slime_engine_sglang.weights import SGLangWeightSender

pytestmark = pytest.mark.timeout(900)

TOLERANCE = 1e-4  # of log-probs in float32
PROMPT = [100, 200, 300, 400, 500, 600, 700, 800]


@pytest.mark.parametrize("transport", ["nccl", "tensor", "disk"])
def test_each_transport_brings_the_new_weights_to_all_servers(engine, reference, transport, send):
    (before,) = ask(engine, PROMPT, max_new_tokens=12, temperature=0.0, ignore_eos=True)
    reference.change(seed=["nccl", "tensor", "disk"].index(transport))
    started = time.monotonic()
    version = send(transport=transport, piece_bytes=2**20, checks_equal=True)
    print(f"{transport}: {time.monotonic() - started:.2f} s")
    prompts = [[*PROMPT, n] for n in range(8)]  # enough for both servers
    for prompt, answer in zip(
        prompts, ask(engine, *prompts, max_new_tokens=12, temperature=0.0, ignore_eos=True), strict=True
    ):
        assert answer.weight_versions == [version] * 12
        assert answer.tokens == reference.greedy(prompt, 12)
        assert difference(reference, prompt, answer) < TOLERANCE
    assert difference(reference, PROMPT, before) > 100 * TOLERANCE, "the old answer would pass as well"


def test_a_second_update_uses_the_same_group(engine, reference, versions):
    sender = engine.weight_sender()
    try:
        for _ in range(2):
            reference.change(seed=11)
            sender.send(reference.named(), version := next(versions))
            name = sender._transport._name
        assert sender._transport._name == name
    finally:
        sender.close()
    (answer,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0, ignore_eos=True)
    assert set(answer.weight_versions) == {version}


def test_update_weights_in_this_process_takes_the_same_way(engine, reference, versions):
    reference.change(seed=12)
    engine.update_weights(list(reference.named()), version := next(versions))
    (answer,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0, ignore_eos=True)
    assert set(answer.weight_versions) == {version}
    assert answer.tokens == reference.greedy(PROMPT, 4)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_response_that_runs_while_weights_change_carries_both_versions(engine, reference, mode, send):
    old = send()
    answers = []
    prompts = [[*PROMPT, n] for n in range(4)]
    asking = threading.Thread(target=lambda: answers.extend(ask(engine, *prompts, **LONG)))
    asking.start()
    time.sleep(0.5)
    before = reference.log_probs  # of the old weights, below
    reference_then = {name: tensor.detach().clone() for name, tensor in reference.named()}
    reference.change(seed=21)
    new = send(pause_mode=mode)
    asking.join()
    both = [answer for answer in answers if set(answer.weight_versions) == {old, new}]
    assert both, [sorted(set(answer.weight_versions)) for answer in answers]
    answer = both[0]
    assert len(answer.tokens) == 400
    assert answer.weight_versions == sorted(answer.weight_versions)
    count = answer.weight_versions.count(old)
    prompt = prompts[answers.index(answer)]
    with torch.no_grad():
        kept = {name: tensor.detach().clone() for name, tensor in reference.named()}
        for name, tensor in reference.named():
            tensor.copy_(reference_then[name])
        theirs = before(prompt, answer.tokens)[:count]
        for name, tensor in reference.named():
            tensor.copy_(kept[name])
    # A step that was under way when the servers were paused counts for the new version, so no token before `count` is
    # new.
    assert (theirs - torch.tensor(answer.log_probs[:count])).abs().max() < TOLERANCE
    if mode == "retract" and count < 390:  # all keys and values were computed anew
        late = slice(count + 2, None)
        ours = reference.log_probs(prompt, answer.tokens)[late]
        assert (ours - torch.tensor(answer.log_probs[late])).abs().max() < TOLERANCE
    reference.change(seed=22)
    send()


def test_weights_that_differ_from_what_was_sent_are_noticed(engine, reference):
    samples = WeightSamples()
    samples.take(list(reference.named()))
    with control_clients(engine.weight_sender().urls, cases.KEYS) as servers:
        for server in servers:
            samples.compare(server)
        name = next(iter(samples._rows))
        samples._rows[name] = samples._rows[name] + 0.001
        with pytest.raises(SGLangError, match=f"another {name}"):
            samples.compare(servers[0])


def test_a_server_that_refuses_weights_ends_the_update_before_anything_is_broadcast(engine, tmp_path):
    """The servers go on with what they have, and the trainer does not wait for a broadcast that nobody takes part
    in."""
    sender = engine.weight_sender()
    sender.tolerant, sender.folder = False, tmp_path
    with control_clients(sender.urls, cases.KEYS) as servers:
        servers[0].call("/begin_weight_update")
        try:
            started = time.monotonic()
            with pytest.raises(SGLangError, match="already open"):
                sender.send(iter([("model.norm.weight", torch.ones(32))]), 999)
            assert time.monotonic() - started < 120
        finally:
            servers[0].call("/end_weight_update")
            sender.close()
            for server in servers[1:]:
                server.call("/continue_generation")
    (answer,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0)
    assert 999 not in answer.weight_versions


def test_servers_take_turns_with_the_trainer_in_the_order_in_which_sglang_survives_it(engine, reference, send):
    """On a CPU memory stays where it is, but a server dies of what is asked twice or too early all the same."""
    answers = []
    asking = threading.Thread(target=lambda: answers.extend(ask(engine, PROMPT, [*PROMPT, 1], **LONG)))
    asking.start()
    until(lambda: cases.requests_of(engine).running)
    time.sleep(0.3)
    for _ in range(2):
        engine.offload()
    asking.join()
    assert {answer.finish_reason for answer in answers} == {"abort"}
    for _ in range(2):
        engine.onload()
    reference.change(seed=41)
    version = send()
    prompts = [[*PROMPT, n] for n in range(8)]  # enough for both servers
    for _ in range(2):
        for prompt, answer in zip(
            prompts, ask(engine, *prompts, max_new_tokens=8, temperature=0.0, ignore_eos=True), strict=True
        ):
            assert (answer.tokens, set(answer.weight_versions)) == (reference.greedy(prompt, 8), {version})
        engine.offload()
        engine.onload()
    ask(engine, PROMPT, max_new_tokens=1, temperature=0.0)
    assert engine.take_metrics()["engine_server_restarts"] == 0


def test_servers_that_were_not_started_for_it_cannot_take_turns(engine, tiny_model, tmp_path):
    addresses = [url.removeprefix("http://") for url in engine.weight_sender().urls]
    words = ["--rollout-external-engine-addrs", *addresses, "--colocate", "--offload"]
    other = SGLangEngine(cases.arguments(tiny_model, tmp_path, *words))
    try:
        with pytest.raises(ArgumentError, match="Start it with --enable-memory-saver --enable-weights-cpu-backup"):
            other.offload()
    finally:
        other.close()
    shown = {"Authorization": f"Bearer {cases.KEYS.server}"}
    asked = urllib.request.Request(f"http://{addresses[0]}/server_info", headers=shown)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        info = json.load(answer)
    assert (info["enable_memory_saver"], info["enable_weights_cpu_backup"]) == (False, False)


def test_no_request_is_lost_when_a_server_is_killed(engine, reference, folder, send):
    version = send()
    engine.take_metrics()
    answers = []
    prompts = [[*PROMPT, n] for n in range(12)]
    logs = [folder / "sglang" / name for name in ("server-0.log", "server-1.log")]
    sizes = [log.stat().st_size for log in logs]
    asking = threading.Thread(target=lambda: answers.extend(ask(engine, *prompts, **LONG)))
    asking.start()
    # The router may send all of them, which begin alike, to the same server.
    busy = until(lambda: [log for log, size in zip(logs, sizes, strict=True) if b"Prefill" in log.read_bytes()[size:]])
    killed = running_pid(busy[0])
    os.kill(killed, signal.SIGKILL)
    asking.join()
    assert len(answers) == 12
    assert all(len(a.tokens) == 400 and set(a.weight_versions) == {version} for a in answers)
    assert max(difference(reference, p, a) for p, a in zip(prompts, answers, strict=True)) < TOLERANCE
    metrics = engine.take_metrics()
    print(metrics)
    assert metrics["engine_server_restarts"] == 1
    assert metrics["engine_request_retries"] > 0


def test_the_server_comes_back_with_the_newest_weights_and_takes_part_in_updates(engine, reference, folder, send):
    reference.change(seed=31)
    version = send()  # while it starts
    fleet = cases.fleet_of(engine)
    until(lambda: len(fleet.answering) == 2)
    with control_clients(fleet.urls, cases.KEYS) as servers:
        assert [server.version() for server in servers] == [version, version]
        bodies = {"sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}, "input_ids": PROMPT}
        for server in servers:
            assert server.call("/generate", bodies)["output_ids"] == reference.greedy(PROMPT, 8)
    reference.change(seed=32)
    version = send()
    with control_clients(fleet.urls, cases.KEYS) as servers:
        assert [server.version() for server in servers] == [version, version]


def test_no_request_is_lost_when_the_router_is_killed(engine, reference, folder):
    engine.take_metrics()
    answers = []
    asking = threading.Thread(target=lambda: answers.extend(ask(engine, *[[*PROMPT, n] for n in range(6)], **LONG)))
    asking.start()
    time.sleep(0.5)
    os.kill(running_pid(folder / "sglang" / "router.log"), signal.SIGKILL)
    asking.join()
    assert [len(answer.tokens) for answer in answers] == [400] * 6
    assert engine.take_metrics()["engine_router_restarts"] == 1


def test_without_fault_tolerance_a_dead_server_ends_the_run(engine, folder):
    """Uses up the servers, so it is the last test."""
    fleet = cases.fleet_of(engine)
    until(lambda: len(fleet.answering) == 2)
    fleet._args = fleet._args.model_copy(update={"use_fault_tolerance": False})
    os.kill(running_pid(folder / "sglang" / "server-1.log"), signal.SIGKILL)

    def ask_for_ever() -> None:
        while True:
            ask(engine, PROMPT, max_new_tokens=4, temperature=0.0)

    with pytest.raises(SGLangError, match=r"ended with status 137(.|\n)*server-1.log"):
        ask_for_ever()
    assert isinstance(engine.weight_sender(), SGLangWeightSender)
