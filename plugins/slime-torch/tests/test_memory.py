"""Memory that a step frees is there for the next one, also on another thread."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from slime_core.runtime.slots import Slot

COUNT_PAGE_FAULTS = """
import resource, sys, threading, torch
from concurrent.futures import ThreadPoolExecutor
from slime_core.runtime.handles import LocalHandle
from slime_core.tensors.freed_memory import keep_freed_memory
class Trainer:
    def setup(self):
        assert keep_freed_memory("train backend")
    def step(self):
        tensors = [torch.ones(2**22 * n) for n in (1, 8)]  # 16 and 128 MiB
def steps():  # such as those of a trainer and an engine, one after the other
    if handle:
        handle.call(Trainer.step).result()
    else:
        thread.submit(trainer.step).result()
    other = threading.Thread(target=trainer.step)
    other.start()
    other.join()
trainer, handle, thread = Trainer(), None, ThreadPoolExecutor(1)
if sys.argv[1] == "in a process":
    handle = LocalHandle(trainer, "trainer")
    handle.call(Trainer.setup).result()
elif sys.argv[1] == "in an actor":  # on a thread of Ray's, which it begins before anything of ours
    thread.submit(trainer.setup).result()
for _ in range(20):  # until the heap has found its shape
    steps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    steps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    actors = Slot(None, 0, {"CPU": 1}).environment()
    environments: dict[str, dict[str, str]] = {"in a process": {}, "in an actor": actors, "not kept": {}}
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, mode], env={**os.environ, **own}))
        for mode, own in environments.items()
    }
    assert max(faults["in a process"], faults["in an actor"]) < 1000 < faults["not kept"], faults
