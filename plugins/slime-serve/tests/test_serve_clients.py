"""Many clients at once, some of which go; who may ask; how the server ends."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serve_fixtures import NAME, Served, serving

from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_serve.serve import main

CLIENTS = 32


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def is_idle(served: Served) -> bool:
    """Whether neither the server nor the engine has a request left."""
    scheduler: Any = served.model.engine._scheduler  # type: ignore[attr-defined]  # there is none outside to look at
    return not (served.service.room.taken or scheduler._running or scheduler._waiting or len(scheduler._storage.cache))


def connection(served: Served, body: dict[str, Any]) -> socket.socket:
    """A client that has asked, and does not read."""
    data = json.dumps({"model": NAME, **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    client = socket.create_connection(served.url.removeprefix("http://").split(":"))
    client.sendall(head.encode() + data)
    return client


def test_one_of_many_clients_is_killed_and_none_of_the_others_notices(served: Served) -> None:
    asked = {"max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
    alone = [
        served.post("/v1/completions", {**asked, "prompt": f"Client {n} asks", "seed": n}).json()["choices"][0]
        for n in (0, CLIENTS - 1)
    ]

    def client(n: int) -> tuple[str, list[int]]:
        text, tokens = "", []
        more = {"ignore_eos": True, "return_token_ids": True}
        stream = served.openai.completions.create(
            model=NAME, prompt=f"Client {n} asks", seed=n, max_tokens=40, stream=True, extra_body=more
        )
        for chunk in stream:
            extra: Any = chunk.choices[0].model_extra
            text += chunk.choices[0].text
            tokens += extra["token_ids"]
        return text, tokens

    killed = connection(served, {"prompt": "Killed", "max_tokens": 400, "ignore_eos": True, "stream": True})
    assert b"200 OK" in killed.recv(1000)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(client, n) for n in range(CLIENTS)]
        until(lambda: served.service.room.taken > CLIENTS // 2, "many ask")
        killed.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )  # as a process that is killed: reset
        killed.close()
        found = [answer.result() for answer in answers]
    for n, choice in zip((0, CLIENTS - 1), alone, strict=True):
        assert found[n] == (choice["text"], choice["token_ids"])
    assert all(len(tokens) == 40 for _, tokens in found)
    until(lambda: is_idle(served), "the slot of the killed client is free")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_slots_whatever_it_waits_for(served: Served, stream: bool) -> None:
    body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "n": 3, "stream": stream}
    with closing(connection(served, body)):
        until(lambda: served.service.room.taken == 3, "the request runs")
    until(lambda: is_idle(served), "its slots are free")
    with served.model.engine.hold():  # type: ignore[attr-defined]  # so that it waits for its first token
        with closing(connection(served, body)):
            until(lambda: served.service.room.taken == 3, "the request waits")
        until(lambda: not served.service.room.taken, "its slots are free")
    assert served.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


def test_a_body_that_is_cut_off_is_nobodys_request(served: Served) -> None:
    with closing(socket.create_connection(served.url.removeprefix("http://").split(":"))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    assert served.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


def test_more_answers_than_there_is_room_for_are_told_to_come_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service.room, "limit", 2)
    with closing(connection(served, {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "n": 2})):
        until(lambda: served.service.room.taken == 2, "there is no room")
        with pytest.raises(openai.RateLimitError, match="takes 2 at a time") as refused:
            served.openai.completions.create(model=NAME, prompt="x", max_tokens=1)
        assert refused.value.response.headers["retry-after"] == "1"
        assert served.http.get("/health").json() == {"status": "ok", "answers": 2, "limit": 2}
    until(lambda: is_idle(served), "there is room again")


def test_an_engine_that_fails_in_a_stream_is_told_in_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler: Any = served.model.engine._scheduler  # type: ignore[attr-defined]  # its model is what fails
    original, passes = scheduler.model.next_logits, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return original(*args, **kwargs) * (float("nan") if len(passes) > 3 else 1)

    monkeypatch.setattr(scheduler.model, "next_logits", failing)
    with pytest.raises(openai.APIError, match="NaN or infinite"):
        list(
            served.openai.completions.create(
                model=NAME, prompt="x", max_tokens=9, stream=True, extra_body={"ignore_eos": True}
            )
        )
    with pytest.raises(openai.InternalServerError, match="NaN or infinite"):
        served.openai.completions.create(model=NAME, prompt="x", max_tokens=9)
    monkeypatch.undo()
    assert served.openai.completions.create(model=NAME, prompt="x", max_tokens=2).choices


def test_a_key_is_asked_for_and_never_shown(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(tiny_model, key="sesame-sesame") as served:
        assert served.openai.completions.create(model=NAME, prompt="x", max_tokens=1).choices
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame-sesame"}):
            response = served.http.get("/v1/models", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "sesame" not in response.text
        assert served.http.get("/health").status_code == 200
        # Running answers are finished when the server ends, and others are not begun.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                lambda: served.openai.completions.create(
                    model=NAME, prompt="x", max_tokens=200, extra_body={"ignore_eos": True}
                )
            )
            until(lambda: served.service.room.taken == 1, "an answer is generated")
            served.service.room.is_closed = True
            assert served.http.get("/health").status_code == 503
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                served.openai.completions.create(model=NAME, prompt="x", max_tokens=1)
    assert running.result().usage.completion_tokens == 200  # type: ignore[union-attr]
    assert "sesame" not in "".join(capfd.readouterr())


def test_answers_that_take_too_long_are_cut_off_at_the_end(tiny_model: Path) -> None:
    with serving(tiny_model, patience=0) as served:
        running = connection(served, {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True})
        assert b"200 OK" in running.recv(1000)
    with closing(running):
        rest = b""
        while part := running.recv(65536):
            rest += part
    assert b"[DONE]" not in rest


def test_an_engine_that_hands_out_no_tokens_is_served_in_one_piece(tiny_model: Path) -> None:
    with serving(tiny_model, "--rollout-engine", "slime_core.testing.EchoEngine") as served:
        asked: dict[str, Any] = {"model": NAME, "prompt": [5, 6, 7], "max_tokens": 2}
        stream = list(served.openai.completions.create(**asked, stream=True, logprobs=0))
        choice: Any = stream[0].choices[0]
        assert [chunk.choices[0].text for chunk in stream] == [served.model.decode([6, 7]), ""]
        assert choice.logprobs.token_logprobs == pytest.approx([math.log(0.5)] * 2)
        with pytest.raises(openai.BadRequestError, match="log-probs of the chosen tokens alone"):
            served.openai.completions.create(**asked, logprobs=2)
        with pytest.raises(openai.BadRequestError, match="an engine that scores given tokens"):
            served.openai.completions.create(**asked, logprobs=0, echo=True)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--host", "0.0.0.0"], "needs --api-key"),
        (["--host", "no.such.host.invalid", "--api-key", "12345678"], "no such address"),
        (["--api-key", "short"], "at least 8 characters"),
        (["--api-key", "env:NOT_SET_HERE"], "'NOT_SET_HERE' is not set"),
        (["--port", "70000"], "--port: given"),
        (["--lr", "1"], "--lr is an option of a run"),
        (["--prot", "1"], "Did you mean '--port'"),
        (["--rollout-engine", "lokal"], "Did you mean 'local'"),
        (["--sglang-router-ip", "1.2.3.4"], "--sglang-router-ip"),
    ],
)
def test_what_cannot_be_served_is_told_before_the_model_is_loaded(
    tiny_model: Path, flags: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLIME_API_KEY", raising=False)
    with pytest.raises(ArgumentError) as error:
        main([str(tiny_model), *flags], Plugins())
    assert problem in str(error.value)
    assert "12345678" not in str(error.value)


def test_a_port_that_is_taken_is_told(tiny_model: Path, served: Served) -> None:
    with pytest.raises(ArgumentError, match="Choose another port"):
        main([str(tiny_model), "--port", served.url.rpartition(":")[2]], Plugins())


def test_the_command_serves_until_it_is_told_to_end(tiny_model: Path, tmp_path: Path) -> None:
    """In a process of its own: what it prints, a running answer that is finished after SIGTERM, the exit status."""
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", "slime_core", "serve", str(tiny_model), "--port", "0", "--served-model-name", NAME]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serving 'tiny' at http://127.0.0.1:" in line
        url = line.split()[3]
        with httpx.stream(
            "POST", f"{url}/completions", json={"model": NAME, "prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True},
            timeout=60, trust_env=False,
        ) as response:  # fmt: skip
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [text for text in lines if text][-1] == "data: [DONE]"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        log.seek(0)
        told = log.read()
        log.close()
    assert "shutting down waiting for 1 answers" in told
    assert "POST /v1/completions 200 1 + 300 tokens" in told
    assert "Traceback" not in told
