"""A process of slime and everything that it starts, none of which outlasts it."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

TOKEN = "SLIME_BENCHMARK_KILLS"
"""An environment variable by which everything that a run started is found, also what has left its process group."""


class Process:
    """A process of slime, and everything that it starts. None of it outlasts the `with` block.

    Args:
        words: after `slime`.
        said: a file for what it prints.
        warm: fork it from this process, which has imported what it needs.
    """

    def __init__(self, words: list[str], environment: dict[str, str], said: Path, warm: bool = False) -> None:
        self._words, self._said, self._warm = words, said, warm
        self._mark = uuid.uuid4().hex
        self._environment = {**environment, TOKEN: self._mark}

    def __enter__(self) -> Process:
        self.started = time.monotonic()
        own: Any = _Forked(self._words, self._environment, self._said) if self._warm else self._executed()
        self._process: subprocess.Popen[bytes] | _Forked = own
        return self

    def _executed(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "slime_core", *self._words]
        with self._said.open("w") as file:
            return subprocess.Popen(command, env=self._environment, stdout=file, stderr=file, start_new_session=True)

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def status(self) -> int | None:
        return self._process.poll()

    @property
    def last_words(self) -> str:
        return " / ".join(self._said.read_text(errors="replace").splitlines()[-6:])

    def kill(self) -> None:
        """SIGKILL to all of it, the first process first, until nothing of it is left."""
        self._process.kill()
        while pids := _marked(f"{TOKEN}={self._mark}".encode()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait()


class _Forked:
    """A copy of this process that runs `slime` with these words, with the methods of `subprocess.Popen` that are used here."""

    def __init__(self, words: list[str], environment: dict[str, str], said: Path) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_be_slime, args=(words, environment, said))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def _be_slime(words: list[str], environment: dict[str, str], said: Path) -> None:
    from slime_core.cli import main as slime

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with said.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(slime(words))


def import_what_runs_need() -> None:
    """Import what a run in one process imports before it trains, so that copies of this process start at once."""
    for name in (
        *("torch.distributed.checkpoint.format_utils", "torch.distributed.fsdp", "torch.optim", "safetensors.torch"),
        *("transformers.models.auto", "transformers.models.llama.modeling_llama", "slime_core.cli.train"),
        *("slime_core.run.launch", "slime_torch.backend", "slime_engine_local.engine", "slime_losses.plugin"),
        *(
            "slime_rollout_sft.plugin",
            "slime_rollout_sglang.fully_async",
            "tokenizers",
            "jinja2.sandbox",
            "rich.progress",
        ),
    ):
        importlib.import_module(name)


def _marked(mark: bytes) -> list[int]:
    """The processes in whose environment there is this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found
