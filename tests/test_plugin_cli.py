"""The real `slime` command: modules of the current folder, crashes of plugins and of slime, whatever hangs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

SLIME = Path(sys.executable).parent / "slime"

LOSS = """
from slime_core.contracts.loss import LossOutputs

def my_loss(args, inputs):
    return LossOutputs(inputs.reduce(-inputs.log_probs))
"""


def slime(
    *words: str | Path, cwd: Path, site: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    kept |= {"OMP_NUM_THREADS": "1", **environment, **({"PYTHONPATH": str(site)} if site else {})}
    command = [str(SLIME), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False, timeout=120)


def install(folder: Path, name: str, code: str) -> Path:
    """A distribution `name` 1.2 whose plugin module has `code`, in a folder for PYTHONPATH."""
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text("from slime_core import Lazy, hookimpl\n" + code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[slime]\n{name} = {name}\n")
    return folder


@pytest.fixture
def flags(tiny_model, chat_rows) -> list[str]:
    words = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    return [*words, "--rollout-function-path", "sft", "--rollout-batch-size", "4", "--num-rollout", "1"]


def test_import_paths_name_modules_in_the_current_folder(flags, tmp_path):
    project = tmp_path / "my_project"
    project.mkdir()
    (project / "losses.py").write_text(LOSS)
    done = slime("check", *flags, "--loss-type", "my_project.losses.my_loss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "my_project.losses.my_loss  (import path)" in done.stdout


def test_a_module_that_is_elsewhere_is_reported_with_where_python_looked(flags, tmp_path):
    done = slime("check", *flags, "--loss-type", "my_project.losses.my_loss", cwd=tmp_path)
    assert done.returncode == 1
    assert "The loss 'my_project.losses.my_loss' of import path, chosen by --loss-type" in done.stderr
    assert "No module named 'my_project'. Python looked in " in done.stderr
    assert f"{tmp_path}; go to the folder that holds it" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_current_folder_is_left_out_where_python_is_told_to(flags, tmp_path):
    (tmp_path / "here.py").write_text(LOSS)
    done = slime("check", *flags, "--loss-type", "here.my_loss", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert done.returncode == 1
    assert "No module named 'here'" in done.stderr


CRASHING = """
def main(argv, plugins):
    return {}["no such key"]

@hookimpl
def slime_commands(): return {"crash": Lazy("slime_core_extras:main", "crashes")}
"""


def test_a_crash_of_a_plugin_is_told_apart_from_a_crash_of_slime_by_where_it_comes_from(tmp_path):
    """The distribution's name has "slime-core" in it, and the message of the error too."""
    site = install(tmp_path / "site", "slime_core_extras", CRASHING)
    done = slime("crash", cwd=tmp_path, site=site)
    assert done.returncode == 1
    assert "slime crash: KeyError: 'no such key'" in done.stderr
    assert "raised in the command 'crash' of slime_core_extras (slime_core_extras 1.2)" in done.stderr
    assert "slime_core_extras.py" in done.stderr
    assert "slime_core/cli" not in done.stderr
    code = (
        "import slime_core.cli.train as t; t.read_sources = lambda *a: 1 / 0; from slime_core.cli import main; "
        "main(['check', '--seed', '3'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "slime_core/cli" in done.stderr


HANGING = """
import threading, time
from concurrent.futures import ThreadPoolExecutor

def waits(args, sample):
    "Waits for ever, on a thread of its own."
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(time.sleep, 3600).result()

async def spins(args, sample):
    "Never gives up the processor."
    while True:
        pass

def quick(args, sample):
    "Zero."
    return 0.0

@hookimpl
def slime_run_started(args): time.sleep(3600)

@hookimpl
def slime_rewards():
    return {name: Lazy(f"hanging:{name}", name) for name in ("waits", "spins", "quick")}
"""


def test_what_hangs_is_reported_by_the_check_and_hangs_neither_it_nor_what_comes_after(tmp_path):
    site = install(tmp_path / "site", "hanging", HANGING)
    started = time.monotonic()
    done = slime("plugins", "check", "hanging", "--time-limit", "1.5", cwd=tmp_path, site=site)
    assert time.monotonic() - started < 60
    assert done.returncode == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    for part in ("waits", "spins"):
        assert [line[2] for line in lines if line[:2] == ["reward", part]] == ["ok", "ok", "ok", "failed"]
    assert [line[2] for line in lines if line[:2] == ["reward", "quick"]] == ["ok"] * 5
    assert [line[2] for line in lines if line[:2] == ["plugin", "hanging"]] == ["ok", "ok", "failed"]
    told = re.findall(rf"it did not come to an end within 1.5 s. It is in {site}/hanging.py, line (\d+)", done.stdout)
    module = (site / "hanging.py").read_text().splitlines()
    observer, waiting, spinning = (module[int(number) - 1].strip() for number in told)
    assert "def slime_run_started" in observer
    assert waiting == "return pool.submit(time.sleep, 3600).result()"
    assert spinning in ("while True:", "pass")


WORDY = """
def long(args, sample):
    return 0.0

@hookimpl
def slime_rewards():
    read = ("my_option", "MyArguments?rm_type", "seed?!bf16")
    return {"long": Lazy("wordy:long", "[a summary] of :many: " + 40 * "words " + "end", reads_options=read)}
"""


def test_tables_are_whole_in_a_pipe_whatever_their_width_and_folded_on_a_terminal(tmp_path):
    site = install(tmp_path / "site", "wordy", WORDY)
    environment = {"FORCE_COLOR": "1", "COLUMNS": "80"}
    done = slime("plugins", "--components", cwd=tmp_path, site=site, **environment)
    (line,) = [line for line in done.stdout.splitlines() if "wordy" in line]
    assert f"  [a summary] of :many: {40 * 'words '}end  --rm-type" in line
    ours, theirs = os.openpty()
    command = [str(SLIME), "plugins", "--only-plugin", "wordy", "--components"]
    kept = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80", "TERM": "dumb"}
    subprocess.run(command, stdout=theirs, env=kept, check=True, timeout=120)
    os.close(theirs)
    written = b""
    with suppress(OSError):  # which is how a terminal ends
        while chunk := os.read(ours, 100_000):  # gives 4 kB at a time
            written += chunk
    shown = written.decode().splitlines()
    os.close(ours)
    assert max(map(len, shown)) <= 80
    assert "".join(shown).count("words") == 40


def test_a_plugin_that_is_asked_for_tells_which_options_its_components_read(tmp_path):
    site = install(tmp_path / "site", "wordy", WORDY)
    done = slime("plugins", "--why", "wordy", cwd=tmp_path, site=site)
    assert "reads       --my-option, all of MyArguments if --rm-type, --seed unless --bf16" in done.stdout
