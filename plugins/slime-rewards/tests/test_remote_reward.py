"""`remote_rm` asks a real server, and the failure policy deals with what goes wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.calls import DROPPED, Caller
from slime_core.rollout.rewards import reward_caller, score
from slime_core.sample import Sample
from slime_core.testing import check_distribution
from slime_rewards import remote
from slime_rewards.remote import remote_rm

Answer = tuple[int, bytes]


@contextmanager
def service(answer: Callable[[dict[str, Any]], Answer], port: int = 0) -> Iterator[str]:
    """A reward service on the loopback interface; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/score"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def arguments(url: str | None, *policy: str, patience: float = 0.0) -> Any:
    return SimpleNamespace(rm_url=url, failure_policy=list(policy), rm_patience=patience, group_rm=False)


def ask(args: Any, sample: Sample) -> Any:
    return asyncio.run(remote_rm(args, sample))


SAMPLE = Sample(index=3, prompt=[{"role": "user", "content": "3 + 4?"}], response="sieben 七 7", label="7")


def test_prompt_response_and_label_arrive_and_the_number_comes_back() -> None:
    seen = []

    def answer(body: dict[str, Any]) -> Answer:
        seen.append(body)
        return 200, b"0.25"

    with service(answer) as url:
        assert ask(arguments(url), SAMPLE) == 0.25
        assert scored(arguments(url), [Sample(prompt="x", response=r"\boxed{7} ok")], "boxed_remote_rm")[0] == [0.25]
    assert seen == [
        {"prompt": SAMPLE.prompt, "response": "sieben 七 7", "label": "7"},
        {"prompt": "x", "response": "7", "label": None},
    ]


def test_an_object_is_handed_on_for_reward_key() -> None:
    with service(lambda body: (200, b'{"score": 0.5, "why": "short"}')) as url:
        assert ask(arguments(url), SAMPLE) == {"score": 0.5, "why": "short"}


@pytest.mark.parametrize("content", [b'"good"', b"null", b"[1]", b"{}", b"", b"<html>", b"\xff"])
def test_an_answer_that_is_no_number_is_an_error(content: bytes) -> None:
    with service(lambda body: (200, content)) as url, pytest.raises(PluginError, match="expected a JSON number"):
        ask(arguments(url), SAMPLE)


@pytest.mark.parametrize("url", [None, "", "localhost:8000", "file:///etc/passwd"])
def test_a_missing_or_wrong_address_is_an_error(url: str | None) -> None:
    with pytest.raises(ArgumentError, match="--rm-url http://host:port/path"):
        ask(arguments(url), SAMPLE)


def test_no_connection_names_the_service() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(PluginError, match=f"{url} cannot be asked for a reward: .*refused"):
            ask(arguments(url), SAMPLE)


def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with service(lambda body: (200, b"1")) as url:
        assert ask(arguments(url), SAMPLE) == 1.0


def scored(args: Any, samples: list[Sample], name: str = "remote_rm") -> tuple[Any, Caller]:
    """What a run gets that chooses the reward by name, and who called it."""
    caller = reward_caller(args, Plugins().select("reward", name))
    return asyncio.run(score(caller, args, samples)), caller


def test_a_service_that_recovers_costs_retries_only() -> None:
    statuses = [503, 500]

    def answer(body: dict[str, Any]) -> Answer:
        return (statuses.pop(), b"warming up") if statuses else (200, b"1")

    with service(answer) as url:
        rewards, caller = scored(arguments(url, "reward:retries=2,backoff=0.01"), [SAMPLE])
    assert rewards == [1.0]
    assert (caller.failures, caller.dropped) == (2, 0)


def test_a_service_that_is_restarted_costs_waiting_and_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    args = arguments(f"http://127.0.0.1:{port}/score", "reward:timeout=1,retries=0", patience=60)
    caller = reward_caller(args, Plugins().select("reward", "remote_rm"))

    async def scored_while_it_is_away() -> Any:
        scoring = asyncio.create_task(score(caller, args, [SAMPLE] * 3))
        await asyncio.sleep(2)  # twice the time that one answer may take
        assert not scoring.done()
        with service(lambda body: (200, b"1"), port):
            return await scoring

    assert asyncio.run(scored_while_it_is_away()) == [1.0] * 3
    assert (caller.failures, caller.dropped) == (0, 0)
    assert caplog.text.count("it is waited for, up to 60 s (--rm-patience)") == 1


def test_many_samples_wait_for_their_turn_and_that_is_no_delay_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AT_ONCE", 2)
    now, most, lock = 0, 0, threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.2)
        with lock:
            now -= 1
        return 200, b"1"

    with service(answer) as url:  # 20 answers, two at a time, take 2 s; one may take 1.5 s
        rewards, caller = scored(arguments(url, "reward:timeout=1.5,retries=0"), [SAMPLE] * 20)
    assert rewards == [1.0] * 20
    assert (caller.failures, most) == (0, 2)


def test_a_group_is_dropped_when_one_of_its_samples_cannot_be_scored(caplog: pytest.LogCaptureFixture) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return (500, b"no such model") if body["label"] == "bad" else (200, b"1")

    with service(answer) as url:
        group = [Sample(index=1, label="good"), Sample(index=2, label="bad")]
        rewards, caller = scored(arguments(url, "reward:retries=1,backoff=0.01"), group)
    assert rewards is DROPPED
    assert (caller.calls, caller.failures, caller.dropped) == (2, 2, 1)
    assert "for sample 2 failed after 2 attempts and is dropped" in caplog.text
    assert "answered with status 500: no such model" in caplog.text


def test_a_service_that_hangs_is_given_up_and_leaves_no_thread() -> None:
    release = threading.Event()

    def answer(body: dict[str, Any]) -> Answer:
        release.wait(30)
        return 200, b"1"

    with service(answer) as url:
        try:
            started = time.monotonic()
            rewards, _ = scored(arguments(url, "reward:timeout=0.3,retries=0"), [SAMPLE])
            assert rewards is DROPPED
            assert time.monotonic() - started < 10
            end = time.monotonic() + 10
            while any(thread.name == "plugin-call" for thread in threading.enumerate()):
                assert time.monotonic() < end, "the calling thread still waits"
                time.sleep(0.02)
        finally:
            release.set()


def test_a_run_ends_when_every_call_fails() -> None:
    with service(lambda body: (500, b"broken")) as url, pytest.raises(PluginError, match="failure number 3 in a row"):
        scored(arguments(url, "reward:retries=0,abort_after=3"), [Sample(index=i) for i in range(3)])


def test_everything_in_this_distribution_keeps_its_contract() -> None:
    with service(lambda body: (200, b"1")) as url:
        check_distribution("slime-rewards", options=["--rm-url", url])


def test_an_answer_that_is_large_is_refused() -> None:
    with service(lambda body: (200, b"1" * (remote.MAX_ANSWER_BYTES + 1))) as url:
        with pytest.raises(PluginError, match=r"answered with more than 1048576 bytes; expected a JSON number"):
            ask(arguments(url), SAMPLE)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"1e999", b"NaN", b"null", b"", b"\xff"])
def test_an_answer_that_is_no_number_is_shown(content: bytes) -> None:
    with service(lambda body: (200, content)) as url, pytest.raises(PluginError, match="expected a JSON number"):
        ask(arguments(url), SAMPLE)


class Recorder(BaseHTTPRequestHandler):
    """Notes who asks, and sends everybody elsewhere or answers."""

    seen: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"]))
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "http://user:geheim@127.0.0.1:1/elsewhere")
        self.end_headers()
        if self.path != "/moved":
            self.wfile.write(b"1")

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    handler = type("Handler", (Recorder,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", handler.seen  # type: ignore[attr-defined]  # of its own
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_redirects_are_not_followed(recorder: tuple[str, list[Any]]) -> None:
    address, seen = recorder
    with pytest.raises(
        PluginError, match=r"status 302 and sends to http://\*\*\*@127\.0\.0\.1:1/elsewhere; redirects are not"
    ):
        ask(arguments(f"http://{address}/moved"), SAMPLE)
    assert [path for path, _ in seen] == ["/moved"]


def test_a_password_goes_to_the_service_and_into_no_message(recorder: tuple[str, list[Any]]) -> None:
    address, seen = recorder
    assert ask(arguments(f"http://me:ge%40heim@{address}/score"), SAMPLE) == 1.0
    assert seen == [("/score", "Basic bWU6Z2VAaGVpbQ==")]
    with pytest.raises(PluginError) as error:
        ask(arguments(f"http://me:geheim@{address}/moved"), SAMPLE)
    assert "geheim" not in str(error.value)
    for wrong in ("ftp://me:geheim@host/", "http://me:geheim@host:port/", "http://me:geheim@/"):
        with pytest.raises(ArgumentError, match="--rm-url") as refused:
            ask(arguments(wrong), SAMPLE)
        assert "geheim" not in str(refused.value)
