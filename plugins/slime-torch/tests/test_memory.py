"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_PAGE_FAULTS = """
import resource, sys, torch
from slime_core.tensors.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    tensors = [torch.ones(2**23) for _ in range(4)]  # 32 MiB each
for _ in range(10):  # until the heap has found its shape, which takes up to five steps
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, mode])) for mode in ("keep", "give")
    }
    assert faults["keep"] < 1000 < faults["give"]
