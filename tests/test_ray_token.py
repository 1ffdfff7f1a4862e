"""A Ray that a run starts on this machine listens on 127.0.0.1 alone and obeys only who knows the token that was made for it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

from slime_core.runtime import connect

pytest.importorskip("ray")

DRIVER = """
import os, subprocess, sys
if "early" in sys.argv:
    import ray
from slime_core.runtime.connect import connect, prepare
prepare("local")
connection = connect("local")
import ray
print("resources", ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).options(num_cpus=0.1).remote()), flush=True)
address = ray.get_runtime_context().gcs_address
print("at", address)
stranger = "import ray; ray.init(address=%r); print('JOINED')" % address
other = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
done = subprocess.run([sys.executable, "-c", stranger], env=other, capture_output=True, text=True)
print("stranger", done.returncode != 0, "JOINED" in done.stdout, "InvalidAuthToken" in done.stderr)
connection.close()
"""


@pytest.mark.slow
def test_strangers_on_this_machine_are_refused() -> None:
    told = drive()
    assert "resources token" in told
    assert "at 127.0.0.1:" in told
    assert "stranger True False True" in told


def test_a_cluster_listens_on_loopback_and_refuses_strangers_though_ray_was_imported_before() -> None:
    told = drive("early")
    assert "resources token" in told
    assert "at 127.0.0.1:" in told
    assert "stranger True False True" in told


def test_a_ray_that_can_take_no_token_any_more_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As another version of Ray would."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the user")
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray._raylet", ModuleType("ray._raylet"))
    connect._require_token()
    assert "the Ray of this run takes no token, because something imported Ray" in caplog.text
    assert "RAY_AUTH_MODE" not in os.environ
    assert os.environ["RAY_AUTH_TOKEN"] == "of the user"


def drive(*words: str, **variables: str) -> str:
    """What a driver prints, in a process that has no other variables of Ray than these."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
