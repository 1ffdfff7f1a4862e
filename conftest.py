"""Fixtures shared by the tests of all distributions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def assets() -> Callable[[str], Path]:
    """`assets("model")` prepares one of the things that `scripts/assets.py` knows and returns its folder."""

    def prepare(what: str) -> Path:
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "assets.py"), what], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.fail(f"scripts/assets.py {what} failed:\n{done.stdout}\n{done.stderr}")
        return Path(done.stdout.strip().splitlines()[-1])

    return prepare
