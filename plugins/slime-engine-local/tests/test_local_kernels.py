"""Triton kernels of the embedded engine on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: benchmarks.gpu compares them")
def test_kernels_compute_what_plain_operations_do() -> None:
    if find_spec("triton") is None:
        pytest.skip("there is no triton here")
    # Whether triton interprets is decided when it is imported, for the whole process.
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(INTERPRETED)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
