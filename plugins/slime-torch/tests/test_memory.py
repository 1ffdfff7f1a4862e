"""Memory that a step frees is there for the next one, also on another thread."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_PAGE_FAULTS = """
import resource, sys, threading, torch
from slime_core.tensors.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory("train backend")
def step():
    tensors = [torch.ones(2**23) for _ in range(4)]  # 32 MiB each
def steps():  # such as those of a trainer and an engine, one after the other
    step()
    other = threading.Thread(target=step)
    other.start()
    other.join()
for _ in range(20):  # until the heap has found its shape
    steps()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    steps()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, mode])) for mode in ("keep", "give")
    }
    assert faults["keep"] < 1000 < faults["give"]
