"""Triton kernels on a machine without a GPU: those of the embedded engine, and those that quantise to FP8."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
KERNELS = ["plugins/slime-engine-local/tests/interpreted_kernels.py", "slime_fp8/tests/test_fused.py"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: benchmarks.gpu compares them")
def test_kernels_compute_what_plain_operations_do(assets: Callable[[str], Path]) -> None:
    path = os.pathsep.join([*sys.path, str(assets("triton"))])  # one that is installed comes first
    # Whether triton interprets is decided when it is imported, for the whole process.
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *KERNELS]
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-5000:]
