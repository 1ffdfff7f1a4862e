"""The guide `docs/write-a-plugin.md` is true: its blocks run in order, as they stand, and print what it says they print.

How the page is read: "`path`:" before a block writes it to that file, "Add to `path`:" appends it. A `bash` block must
succeed, a `bash fails` block must not. A `text` block is what the command before it prints, line by line, where "…"
stands for anything.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from slime_core.run.tracking import read_metrics

PAGE = Path(__file__).parent.parent / "docs" / "write-a-plugin.md"

BLOCK = re.compile(r"^```(?P<language>\w+)(?P<fails> fails)?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"(?P<add>Add to )?`(?P<path>[^`]+)`:")


@dataclass(frozen=True)
class Block:
    """One fenced block: what it is for ("write", "add", "run", "fail" or "output"), its file if any, its text."""

    purpose: str
    path: str
    text: str


def blocks() -> list[Block]:
    found = []
    page = PAGE.read_text(encoding="utf-8")
    for match in BLOCK.finditer(page):
        if match["language"] in ("bash", "text"):
            purpose = "output" if match["language"] == "text" else "fail" if match["fails"] else "run"
            found.append(Block(purpose, "", match["text"]))
        else:
            file = FILE.fullmatch(page[: match.start()].rstrip().rpartition("\n")[2])
            assert file, f"the page does not say where this goes:\n{match['text']}"
            found.append(Block("add" if file["add"] else "write", file["path"], match["text"]))
    return found


def wheel_of_pytest(folder: Path) -> Path:
    """Make a wheel of the pytest that is installed here, for `pip` without a network, and return where it lies."""
    wheel = folder / f"pytest-{metadata.version('pytest')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in metadata.files("pytest") or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                packed.write(file.locate(), file.as_posix())
    return folder


@pytest.fixture
def environment(tmp_path, tiny_model) -> dict[str, str]:
    """A virtual environment that sees everything installed here but pytest, as a user's, and into which `pip` installs without
    changing it, pytest too."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    own_packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    outer = tmp_path / "outer"
    outer.mkdir()
    pytests_own = {Path(file).parts[0] for file in metadata.files("pytest") or ()}
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name not in pytests_own:
            (outer / path.name).symlink_to(path)
    Path(own_packages, "outer.pth").write_text(f"import site; site.addsitedir({str(outer)!r})\n")
    for name, code in {
        "slime": "from slime_core.cli import main as run; import sys; sys.exit(run())",
        "pip": "import runpy; runpy.run_module('pip', run_name='__main__')",
    }.items():
        (venv / "bin" / name).write_text(f"#!{python}\n{code}\n")
        (venv / "bin" / name).chmod(0o755)
    # Isolation would fetch the build backend, which is installed already.
    pip = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip["PIP_FIND_LINKS"] = str(wheel_of_pytest(tmp_path))
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "pytest").exists()]
    path = os.pathsep.join([str(venv / "bin"), *folders])
    return {**kept, **pip, "PATH": path, "MODEL": str(tiny_model), "OMP_NUM_THREADS": "1"}


def missing_lines(expected: str, printed: str) -> list[str]:
    """The lines of `expected` that `printed` does not hold; "…" matches anything within a line."""
    patterns = {line: ".*".join(map(re.escape, re.split(r"\s*…\s*", line.strip()))) for line in expected.splitlines()}
    return [line for line, pattern in patterns.items() if not re.search(pattern, printed)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_block_of_the_guide_runs_as_it_stands_and_prints_what_it_says(environment, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    printed = ""
    for block in blocks():
        if block.purpose in ("write", "add"):
            path = folder / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_text() + "\n\n" if block.purpose == "add" else ""
            path.write_text(before + block.text)
        elif block.purpose == "output":
            assert missing_lines(block.text, printed) == [], (
                f"the guide shows\n{block.text}\nbut this was printed\n{printed}"
            )
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            printed = done.stdout + done.stderr
            assert (done.returncode != 0) == (block.purpose == "fail"), f"{block.text}\n{printed}"
            assert "Traceback" not in printed, f"{block.text}\n{printed}"


RECIPE = """
prompt_data: [{rows}]
input_key: messages
rollout_function_path: sft
disable_compute_advantages_and_returns: true
rollout_batch_size: 4
num_rollout: 2
lr: 1.0e-3
"""


@pytest.mark.slow
def test_a_new_package_trains_by_one_flag_and_is_missed_by_name_once_it_is_gone(environment, chat_rows, tmp_path):
    """What its user types, from `slime plugins new` to `pip uninstall`."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(rows=chat_rows))
    (folder / "named.yaml").write_text(RECIPE.format(rows=chat_rows) + "loss_type: my_loss\n")

    def bash(command: str, status: int = 0) -> str:
        words = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    bash("slime plugins new my-loss --kind loss && pip install -q ./my-loss")
    assert missing_lines("my-loss … my-loss … 0.1.0 … loaded … losses", bash("slime plugins")) == []
    bash('slime train recipe.yaml --hf-checkpoint "$MODEL" --loss-type my_loss --run-dir run')
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["components"]["loss"] == "my_loss of my-loss (my-loss 0.1.0)"
    assert config["plugins"]["my-loss"] == "0.1.0"
    first, second = read_metrics(folder / "run" / "metrics.jsonl")
    # The loss is (1 - p)² times the negative log-likelihood, which is near that of all tokens alike for a random model.
    assert 0 < first["train/probability"] < 1e-3
    assert first["train/loss"] == pytest.approx(math.log(4096), abs=0.3)
    assert second["perf/hooks/loss/calls"] == 4

    bash("pip uninstall -q -y my-loss")
    printed = bash('slime train named.yaml --hf-checkpoint "$MODEL" --run-dir again', status=1)
    assert printed.startswith("slime train: There is no loss named 'my_loss' for --loss-type.")
    assert "or give an import path such as my_package.my_module.my_loss." in printed
    assert "Traceback" not in printed
    assert not (folder / "again").exists()


def test_the_page_is_read_as_it_is_meant():
    purposes = [block.purpose for block in blocks()]
    text = PAGE.read_text(encoding="utf-8")
    assert len(purposes) == text.count("```") // 2, "a block of the page was overlooked"
    assert {"write", "add", "run", "fail", "output"} == set(purposes)
    assert missing_lines("a … c\nb", "a and b and c") == []
    assert missing_lines("a … c\nz", "a and b\nc") == ["a … c", "z"]
