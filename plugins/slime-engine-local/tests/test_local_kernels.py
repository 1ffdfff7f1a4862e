"""Triton kernels of the embedded engine on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: benchmarks.gpu compares them")
def test_kernels_compute_what_plain_operations_do(assets: Callable[[str], Path]) -> None:
    path = os.pathsep.join([*sys.path, str(assets("triton"))])  # one that is installed comes first
    # Whether triton interprets is decided when it is imported, for the whole process.
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(INTERPRETED)]
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
