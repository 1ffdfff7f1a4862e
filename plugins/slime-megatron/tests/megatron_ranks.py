"""Calls a function in processes of its own, which find each other as training ranks do, and ends all of them.

megatron-core is never used in the process of the tests: without CUDA it changes torch for the rest of a process, and its
groups of ranks want real processes.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from slime_core.free_port import FreePort


def launch(target: str, arguments: Sequence[Any], ranks: int, folder: Path, timeout_s: float) -> list[dict[str, Any]]:
    """Call a function in so many new processes, which find each other as training ranks do, and end all of them.

    Args:
        target: import path of the function, "module:name". It is called with the arguments and a dict, into which it
            writes what it found, and which it may write to the rank's file with `note` at any time.

    Returns:
        per rank the dict; of a rank that failed as far as it came, with the traceback as "error".
    """
    context, port = _context(), FreePort("127.0.0.1")
    files = [folder / f"rank {rank} of {ranks}.json" for rank in range(ranks)]
    for file in files:
        file.unlink(missing_ok=True)
    processes = [
        context.Process(target=_rank, args=(target, tuple(arguments), rank, ranks, port.number, file, dict(os.environ)))
        for rank, file in enumerate(files)
    ]
    try:
        for process in processes:
            process.start()
        _wait(processes, timeout_s)
        return [json.loads(file.read_text()) if file.is_file() else {"error": "found nothing"} for file in files]
    finally:
        for process in processes:
            if process.pid is not None:  # it was started
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # it, and what it has started
                process.kill()
                process.join()


@functools.cache
def _context() -> Any:
    """Processes are forked off one that has imported what takes seconds, and has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megatron_imports"])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # it would leave out what it does not find
        forkserver.ensure_running()
    return context


def _wait(processes: Sequence[Any], timeout_s: float) -> None:
    """Wait until all have ended, or one has failed and the others had the time to notice."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            end = min(end, time.monotonic() + 10)
        time.sleep(0.05)


def _rank(
    target: str,
    arguments: tuple[Any, ...],
    rank: int,
    ranks: int,
    port: int,
    file: Path,
    environment: dict[str, str],
) -> None:
    """What a process does."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    variables = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}

    def note() -> None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.rename(file)

    try:
        resolve(target)(*arguments, found, note)
    except BaseException:
        found["error"] = traceback.format_exc()
        raise
    finally:
        note()


def resolve(path: str) -> Any:
    """The object at an import path "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
