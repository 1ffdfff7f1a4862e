"""Two real SGLang servers behind the real router, on CPUs; `scripts/test-sglang.sh` makes the environment and runs this.

The tests share the servers and run in this order: what is asked of healthy servers first, what kills them last.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import sglang_cases as cases
import torch
from sglang_cases import LONG, Reference, ask, difference, running_pid, until

from slime_core.errors import ArgumentError

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

from slime_engine_sglang.control import controls
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.weights import Samples, WeightSender

pytestmark = pytest.mark.timeout(900)

TOLERANCE = 1e-4  # of log-probs in float32
PROMPT = [100, 200, 300, 400, 500, 600, 700, 800]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def engine(tiny_model, folder):
    args = cases.arguments(tiny_model, folder, "--sglang-log-level", "info", "--rollout-num-gpus", "2")
    engine = SGLangEngine(args)
    yield engine
    pids = [running_pid(folder / "sglang" / name) for name in ("server-0.log", "server-1.log", "router.log")]
    engine.close()
    until(lambda: all(map(cases.is_gone, pids)), 60)


@pytest.fixture(scope="module")
def reference(tiny_model) -> Reference:
    """The model; the tests that give the engine other weights change it as well."""
    return Reference(tiny_model)


_versions = iter(range(1, 1000))


def send(engine, reference, **changes) -> int:
    """Give the servers the weights of `reference` under a new version."""
    version = next(_versions)
    sender = engine.weight_sender()
    for name, value in changes.items():
        setattr(sender, name, value)
    try:
        sender.send(reference.named(), version)
    finally:
        sender.close()
    return version


@pytest.mark.parametrize(
    ("params", "temperature"),
    [
        ({"temperature": 0.0}, 1.0),
        ({"temperature": 0.8}, 0.8),
        ({"temperature": 1.0, "top_p": 0.9}, 1.0),
        ({"temperature": 0.8, "top_p": 0.9, "top_k": 20}, 0.8),
    ],
    ids=["greedy", "temperature 0.8", "top-p 0.9", "all of them"],
)
def test_log_probs_are_those_of_the_trainer(engine, reference, params, temperature):
    prompts = [[*PROMPT, n] for n in range(6)]
    answers = ask(engine, *prompts, max_new_tokens=24, **params)
    worst = max(difference(reference, p, a, temperature) for p, a in zip(prompts, answers, strict=True))
    print(f"largest difference: {worst:.2e}")
    assert worst < TOLERANCE
    assert all(a.weight_versions == [0] * len(a.tokens) and a.tokens for a in answers)
    if temperature != 1.0:  # a planted fault: at another temperature they are others
        assert difference(reference, prompts[0], answers[0], 1.0) > 100 * TOLERANCE


def test_greedy_and_sampled_requests_in_one_batch_have_log_probs_of_their_own_temperature(engine, reference):
    async def both():
        calls = [
            engine.generate([*PROMPT, n], {"max_new_tokens": 40, "temperature": t, "ignore_eos": True})
            for n, t in enumerate([0.0, 0.7] * 4)
        ]
        return await asyncio.gather(*calls)

    for n, answer in enumerate(asyncio.run(both())):
        assert difference(reference, [*PROMPT, n], answer, 1.0 if n % 2 == 0 else 0.7) < TOLERANCE


def test_greedy_tokens_are_those_of_transformers(engine, reference):
    (answer,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True)
    assert answer.tokens == reference.greedy(PROMPT, 16)
    assert answer.finish_reason == "length"


def test_a_stop_token_ends_the_answer_and_belongs_to_it(engine):
    (free,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True)
    (answer,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, stop_token_ids=[free.tokens[5]])
    cut = free.tokens.index(free.tokens[5]) + 1
    assert (answer.tokens, answer.finish_reason) == (free.tokens[:cut], "stop")
    (longer,) = ask(
        engine, PROMPT, max_new_tokens=16, min_new_tokens=cut + 2, temperature=0.0, stop_token_ids=[free.tokens[5]]
    )
    assert len(longer.tokens) >= cut + 2


def test_a_stop_string_ends_the_answer_and_belongs_to_it(engine):
    (free,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True)
    piece = engine._tokenizer.decode(free.tokens[3:5])
    (answer,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True, stop=piece)
    assert answer.finish_reason == "stop"
    assert answer.tokens == free.tokens[: len(answer.tokens)]
    assert piece in engine._tokenizer.decode(answer.tokens)
    assert len(answer.tokens) <= 6


def test_samples_of_a_group_share_their_prompt(engine):
    engine.take_metrics()
    prompt = list(range(1000, 1200))
    ask(engine, prompt, max_new_tokens=2, temperature=1.0)
    ask(engine, *[prompt] * 7, max_new_tokens=2, temperature=1.0)
    hits = engine.take_metrics()["prefix_cache_hit_rate"]
    print(f"share of prompt tokens from the cache: {hits:.2f}")
    assert hits > 0.7


def test_a_response_ends_where_the_models_context_does(engine):
    for length, expected in ((500, 10), (505, 5), (506, 0), (511, 0)):
        (answer,) = ask(engine, list(range(1, length + 1)), max_new_tokens=400, temperature=0.0, ignore_eos=True)
        assert (answer.finish_reason, len(answer.tokens)) == ("length", expected)


@pytest.mark.parametrize(
    ("prompt", "params", "text"),
    [
        ([], {}, "no tokens"),
        ([10**6], {}, "the model knows"),
        (list(range(512)), {}, "leaves no room"),
        (PROMPT, {"top_p": 7.0}, "top_p"),
        (PROMPT, {"temperature": -1.0}, "temperature"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(engine, prompt, params, text):
    with pytest.raises(ArgumentError, match=text):
        ask(engine, prompt, max_new_tokens=4, **{"temperature": 1.0, **params})


def test_an_aborted_request_returns_its_tokens_and_goes_on_from_there(engine, reference):
    async def cut_off():
        asking = [asyncio.ensure_future(engine.generate([*PROMPT, n], dict(LONG), f"r-{n}")) for n in (1, 12)]
        while not engine._running or time.monotonic() < started + 0.5:
            await asyncio.sleep(0.01)
        await engine.abort(["r-1", "nobody"])
        aborted_at = [task.done() for task in asking]
        return await asyncio.gather(*asking), aborted_at

    started = time.monotonic()
    (part, other), done = asyncio.run(cut_off())
    assert done[0], "abort returned before the request had ended"
    assert (part.finish_reason, other.finish_reason) == ("abort", "length"), "a name that begins like another"
    assert len(part.tokens) < 400
    assert len(other.tokens) == 400
    (more,) = ask(engine, [*PROMPT, 1, *part.tokens], **{**LONG, "max_new_tokens": 20})
    count = len(part.tokens) + len(more.tokens)
    assert part.tokens + more.tokens == reference.greedy([*PROMPT, 1], count)
    whole = torch.tensor(part.log_probs + more.log_probs)
    assert (reference.log_probs([*PROMPT, 1], part.tokens + more.tokens) - whole).abs().max() < TOLERANCE


def test_aborting_everything_ends_everything_even_what_waits(engine):
    async def all_of_them():
        asking = [asyncio.ensure_future(engine.generate([*PROMPT, n], dict(LONG), f"r-{n}")) for n in range(80)]
        await asyncio.sleep(0.3)
        await asyncio.wait_for(engine.abort(), 60)
        return await asyncio.wait_for(asyncio.gather(*asking), 1)

    answers = asyncio.run(all_of_them())
    assert {answer.finish_reason for answer in answers} <= {"abort", "length"}
    assert sum(answer.finish_reason == "abort" for answer in answers) > 40
    (after,) = ask(engine, PROMPT, max_new_tokens=2, temperature=0.0)
    assert after.finish_reason != "abort"


@pytest.mark.parametrize("transport", ["nccl", "tensor", "disk"])
def test_each_transport_brings_the_new_weights_to_all_servers(engine, reference, transport):
    (before,) = ask(engine, PROMPT, max_new_tokens=12, temperature=0.0, ignore_eos=True)
    reference.change(seed=["nccl", "tensor", "disk"].index(transport))
    started = time.monotonic()
    version = send(engine, reference, transport=transport, piece_bytes=2**20, compare_servers=True)
    print(f"{transport}: {time.monotonic() - started:.2f} s")
    prompts = [[*PROMPT, n] for n in range(8)]  # enough for both servers
    for prompt, answer in zip(
        prompts, ask(engine, *prompts, max_new_tokens=12, temperature=0.0, ignore_eos=True), strict=True
    ):
        assert answer.weight_versions == [version] * 12
        assert answer.tokens == reference.greedy(prompt, 12)
        assert difference(reference, prompt, answer) < TOLERANCE
    assert difference(reference, PROMPT, before) > 100 * TOLERANCE, "the old answer would pass as well"


def test_a_second_update_uses_the_same_group(engine, reference):
    sender = engine.weight_sender()
    try:
        for _ in range(2):
            reference.change(seed=11)
            sender.send(reference.named(), version := next(_versions))
            name = sender._way._name
        assert sender._way._name == name
    finally:
        sender.close()
    (answer,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0, ignore_eos=True)
    assert set(answer.weight_versions) == {version}


def test_update_weights_in_this_process_takes_the_same_way(engine, reference):
    reference.change(seed=12)
    engine.update_weights(list(reference.named()), version := next(_versions))
    (answer,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0, ignore_eos=True)
    assert set(answer.weight_versions) == {version}
    assert answer.tokens == reference.greedy(PROMPT, 4)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_response_that_runs_while_weights_change_carries_both_versions(engine, reference, mode):
    old = send(engine, reference)
    answers = []
    prompts = [[*PROMPT, n] for n in range(4)]
    asking = threading.Thread(target=lambda: answers.extend(ask(engine, *prompts, **LONG)))
    asking.start()
    time.sleep(0.5)
    before = reference.log_probs  # of the old weights, below
    reference_then = {name: tensor.detach().clone() for name, tensor in reference.named()}
    reference.change(seed=21)
    new = send(engine, reference, pause_mode=mode)
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
    # A step that was under way when the servers were paused counts for the new version, so no token before `count` is new.
    assert (theirs - torch.tensor(answer.log_probs[:count])).abs().max() < TOLERANCE
    if mode == "retract" and count < 390:  # all keys and values were computed anew
        late = slice(count + 2, None)
        ours = reference.log_probs(prompt, answer.tokens)[late]
        assert (ours - torch.tensor(answer.log_probs[late])).abs().max() < TOLERANCE
    reference.change(seed=22)
    send(engine, reference)


def test_weights_that_differ_from_what_was_sent_are_noticed(engine, reference):
    samples = Samples()
    samples.of(list(reference.named()))
    with controls(engine.weight_sender().urls) as servers:
        for server in servers:
            samples.compare(server)
        name = next(iter(samples._rows))
        samples._rows[name] = samples._rows[name] + 0.001
        with pytest.raises(SGLangError, match=f"another {name}"):
            samples.compare(servers[0])


def test_a_server_that_refuses_weights_ends_the_update_before_anything_is_broadcast(engine, tmp_path):
    """The servers go on with what they have, and the trainer does not wait for a broadcast that nobody takes part in."""
    sender = engine.weight_sender()
    sender.tolerant, sender.folder = False, tmp_path
    with controls(sender.urls) as servers:
        servers[0].ask("/begin_weight_update")
        try:
            started = time.monotonic()
            with pytest.raises(SGLangError, match="already open"):
                sender.send(iter([("model.norm.weight", torch.ones(32))]), 999)
            assert time.monotonic() - started < 120
        finally:
            servers[0].ask("/end_weight_update")
            sender.close()
            for server in servers[1:]:
                server.ask("/continue_generation")
    (answer,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0)
    assert 999 not in answer.weight_versions


def test_another_engine_can_use_servers_that_run_already(engine, tiny_model, tmp_path):
    addresses = [url.removeprefix("http://") for url in engine.weight_sender().urls]
    args = cases.arguments(tiny_model, tmp_path, "--rollout-external-engine-addrs", *addresses)
    other = SGLangEngine(args)
    try:
        answers = ask(other, *[[*PROMPT, n] for n in range(4)], max_new_tokens=4, temperature=0.0)
        assert all(answer.tokens for answer in answers)
    finally:
        other.close()
    (still,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0)
    assert still.tokens


def test_servers_take_turns_with_the_trainer_in_the_order_in_which_sglang_survives_it(engine, reference):
    """On a CPU memory stays where it is, but a server dies of what is asked twice or too early all the same."""
    answers = []
    asking = threading.Thread(target=lambda: answers.extend(ask(engine, PROMPT, [*PROMPT, 1], **LONG)))
    asking.start()
    until(lambda: engine._running)
    time.sleep(0.3)
    for _ in range(2):
        engine.offload()
    asking.join()
    assert {answer.finish_reason for answer in answers} == {"abort"}
    for _ in range(2):
        engine.onload()
    reference.change(seed=41)
    version = send(engine, reference)
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
    with urllib.request.urlopen(f"http://{addresses[0]}/server_info", timeout=60) as answer:
        info = json.load(answer)
    assert (info["enable_memory_saver"], info["enable_weights_cpu_backup"]) == (False, False)


def test_no_request_is_lost_when_a_server_is_killed(engine, reference, folder):
    version = send(engine, reference)
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


def test_the_server_comes_back_with_the_newest_weights_and_takes_part_in_updates(engine, reference, folder):
    reference.change(seed=31)
    version = send(engine, reference)  # while it starts
    fleet = engine._started.result()
    until(lambda: len(fleet.answering) == 2)
    with controls(fleet.urls) as servers:
        assert [server.version() for server in servers] == [version, version]
        bodies = {"sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}, "input_ids": PROMPT}
        for server in servers:
            assert server.ask("/generate", bodies)["output_ids"] == reference.greedy(PROMPT, 8)
    reference.change(seed=32)
    version = send(engine, reference)
    with controls(fleet.urls) as servers:
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
    fleet = engine._started.result()
    until(lambda: len(fleet.answering) == 2)
    fleet._args = fleet._args.model_copy(update={"use_fault_tolerance": False})
    os.kill(running_pid(folder / "sglang" / "server-1.log"), signal.SIGKILL)

    def ask_for_ever() -> None:
        while True:
            ask(engine, PROMPT, max_new_tokens=4, temperature=0.0)

    with pytest.raises(SGLangError, match=r"ended with status 137(.|\n)*server-1.log"):
        ask_for_ever()
    assert isinstance(engine.weight_sender(), WeightSender)
