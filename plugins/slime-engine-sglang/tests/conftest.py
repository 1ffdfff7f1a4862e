"""SGLang servers for the tests that need them: real ones on the CPU of this machine, and scripted ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sglang_cases as cases

if TYPE_CHECKING:
    from slime_engine_sglang.engine import SGLangEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `engine`."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def engine(tiny_model: Path, folder: Path) -> Iterator[SGLangEngine]:
    """An engine with two servers and a router, which the tests of a module share."""
    from slime_engine_sglang.engine import SGLangEngine

    args = cases.arguments(tiny_model, folder, "--sglang-log-level", "info", "--rollout-num-gpus", "2")
    engine = SGLangEngine(args)
    yield engine
    logs = [folder / "sglang" / name for name in ("server-0.log", "server-1.log", "router.log")]
    pids = [cases.running_pid(log) for log in logs]
    engine.close()
    cases.until(lambda: all(map(cases.is_gone, pids)), 60)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> cases.Reference:
    """The model of `engine`; tests that give the engine other weights change it as well."""
    return cases.Reference(tiny_model)


@pytest.fixture(scope="module")
def versions() -> Iterator[int]:
    """The versions of the weights that the servers are given next."""
    return iter(range(1, 1000))


@pytest.fixture(scope="module")
def send(engine: SGLangEngine, reference: cases.Reference, versions: Iterator[int]) -> Callable[..., int]:
    """`send(**changes)`: gives the servers the weights of `reference` under a new version, which it returns. `changes`
    are made to the weight sender before."""

    def make(**changes: Any) -> int:
        version = next(versions)
        sender = engine.weight_sender()
        for name, value in changes.items():
            setattr(sender, name, value)
        try:
            sender.send(reference.named(), version)
        finally:
            sender.close()
        return version

    return make


@pytest.fixture
def start_scripted(monkeypatch, tmp_path, tiny_model) -> Iterator[Callable[..., SGLangEngine]]:
    """`start_scripted(args, servers)`: an engine with these options whose servers and router are scripted, and answer."""
    from slime_engine_sglang import launcher, router, server
    from slime_engine_sglang.engine import SGLangEngine

    def server_command(
        args: Any, number: int, model: str, version: int, host: str, port: int, on_gpu: bool
    ) -> list[str]:
        return [sys.executable, cases.SCRIPTED, "server", str(port), str(tmp_path / f"asked-{number}"), str(version)]

    monkeypatch.setattr(launcher, "POLL_S", 0.01)
    monkeypatch.setattr(server, "server_command", server_command)
    monkeypatch.setattr(
        router, "router_command", lambda args, host, port, _: [sys.executable, cases.SCRIPTED, "router", str(port)]
    )
    engines = []

    def make(args: Any, servers: int) -> SGLangEngine:
        args.hf_checkpoint, args.run_dir = str(tiny_model), str(tmp_path)
        logs = [tmp_path / f"server-{number}.log" for number in range(servers)]
        own = [server.Server(args, number, log, gpus=["0"]) for number, log in enumerate(logs)]
        engines.append(SGLangEngine(args, servers=own))
        engines[-1].weight_sender()  # waits for them
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def asked(tmp_path) -> Callable[..., list[Any]]:
    """`asked(number)`: what a scripted server was asked so far; health checks are left out unless `health` is true."""

    def read(number: int = 0, health: bool = False) -> list[Any]:
        lines = [json.loads(line) for line in (tmp_path / f"asked-{number}").read_text().splitlines()]
        return [line for line in lines if health or line[0] != "/health"]

    return read
