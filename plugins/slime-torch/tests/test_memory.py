"""Memory that a step frees is there for the next one, and large tensors lie in large pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

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
    small = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, mode], env=small))
        for mode in ("keep", "give")
    }
    assert faults["keep"] < 1000 < faults["give"]


COUNT_LARGE_PAGES = """
import torch
import slime_core.tensors.rms_norm  # as good as any
tensor = torch.ones(2**24)  # 64 MiB
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line for line in lines if line.startswith("AnonHugePages")).split()[1])
"""
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[never]" in LARGE_PAGES.read_text(), reason="this system gives no large pages"
)
@pytest.mark.parametrize(("wish", "given"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_large_tensors_lie_in_large_pages_unless_torch_is_told_otherwise(wish: dict[str, str], given: bool) -> None:
    if not given and "[always]" in LARGE_PAGES.read_text():
        pytest.skip("this system gives large pages unasked")
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | wish
    found = subprocess.check_output([sys.executable, "-c", COUNT_LARGE_PAGES], env=environment)
    assert (int(found) > 2**15) is given  # half of it, in KiB: the system may have run out of them
