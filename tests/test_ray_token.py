"""A Ray that a run starts on this machine obeys only who knows the token that was made for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray")

DRIVER = """
import os, subprocess, sys
from slime_core.runtime.connect import connect, prepare
prepare("local")
connection = connect("local")
import ray
print("resources", ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).options(num_cpus=0.1).remote()))
address = ray.get_runtime_context().gcs_address
stranger = "import ray; ray.init(address=%r); print('JOINED')" % address
other = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
done = subprocess.run([sys.executable, "-c", stranger], env=other, capture_output=True, text=True)
print("stranger", done.returncode != 0, "JOINED" in done.stdout, "InvalidAuthToken" in done.stderr)
connection.close()
"""


def test_strangers_on_this_machine_are_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", DRIVER], env=environment, capture_output=True, text=True, timeout=300)
    assert "resources token" in done.stdout, done.stderr[-2000:]
    assert "stranger True False True" in done.stdout
