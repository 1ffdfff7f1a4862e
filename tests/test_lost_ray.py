"""A process of Ray that ends, or a machine that does not answer, is named within seconds with its machine and port."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from slime_core.errors import WorkerDied
from slime_core.runtime import machines
from slime_core.runtime.machines import Outlook, RayProcess


class Seen:
    """What an outlook has said, and what it called lost."""

    def __init__(self, *processes: RayProcess) -> None:
        self.errors: list[WorkerDied] = []
        self._lost = threading.Event()
        self.outlook = Outlook(processes, self._take)

    def _take(self, error: WorkerDied) -> None:
        self.errors.append(error)
        self._lost.set()

    def wait(self, seconds: float = 5.0) -> str:
        assert self._lost.wait(seconds)
        (error,) = self.errors
        return str(error)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_EVERY_S", 0.02)
    monkeypatch.setattr(machines, "_ANSWER_S", 0.1)
    monkeypatch.setattr(machines, "GIVEN_UP_S", 0.3)
    monkeypatch.setattr(machines, "ENDED_S", {"raylet": 0.1, "gcs_server": 0.2})


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def until(condition: str, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 5
    while condition not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("raylet", "the run itself and training rank 0 (process 7 on 127.0.0.1)"),
        ("gcs_server", "the head of the Ray cluster"),
    ],
)
def test_a_process_that_ended_is_named_with_machine_and_port(listening, caplog, name, who) -> None:
    port = listening.getsockname()[1]
    process = RayProcess(name, "127.0.0.1", port, who)
    assert process.ended() is None
    seen = Seen(process)
    time.sleep(0.1)
    assert not caplog.records
    listening.close()
    text = seen.wait()
    until("the run ends", caplog)
    assert caplog.messages == [
        f"127.0.0.1, the machine of {who}: nothing listens at port {port} any more (Connection refused): Ray's process {name} "
        "there has ended. If it does not come back within 0 s, the run ends."
    ]
    assert text == (
        f"Ray's process {name} on 127.0.0.1, the machine of {who}, has ended: nothing listens at its port {port} any more "
        "(Connection refused). It was stopped, as `ray stop` does, or killed, or crashed, perhaps for want of memory; Ray's "
        f"folder of logs on that machine has its {name}.out."
    )
    assert str(process.ended()) == text


def test_one_that_comes_back_ends_nothing(listening, caplog, monkeypatch) -> None:
    monkeypatch.setitem(machines.ENDED_S, "gcs_server", 30.0)
    port = listening.getsockname()[1]
    seen = Seen(RayProcess("gcs_server", "127.0.0.1", port, "the head of the Ray cluster"))
    with caplog.at_level(logging.WARNING):
        listening.close()
        until("has ended", caplog)
        assert seen.outlook.is_silent("127.0.0.1")
        with socket.create_server(("127.0.0.1", port)):
            until("gcs_server at 127.0.0.1 answers again", caplog)
    seen.outlook.close()
    assert seen.errors == []


def test_a_machine_that_does_not_answer_is_named_once_for_all_that_is_on_it(monkeypatch, caplog) -> None:
    def silence(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(machines.socket, "create_connection", silence)
    who = "the head of the Ray cluster and training rank 1 (process 9 on 10.0.0.2)"
    seen = Seen(RayProcess("raylet", "10.0.0.2", 7000, who), RayProcess("gcs_server", "10.0.0.2", 6379, who))
    assert seen.wait().startswith(
        f"The {who[4:]} are lost with their machine: nothing answered at port 7000 for 0 s: timed out."
    )
    (said,) = caplog.messages
    assert said.startswith(f"10.0.0.2, the machine of {who}, does not answer at port 7000 (timed out, after ")
