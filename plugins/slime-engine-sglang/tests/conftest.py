"""Real SGLang servers on the CPU of this machine, for the tests that need them."""

from __future__ import annotations

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
