"""The guide `docs/write-a-plugin.md` is true: its blocks run in order, as they stand, and print what it says they print.

How the page is read: "`path`:" before a block writes it to that file, "Add to `path`:" appends it. A `bash` block must
succeed, a `bash fails` block must not. A `text` block is what the command before it prints, line by line, where "…"
stands for anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@pytest.fixture
def environment(tmp_path, tiny_model) -> dict[str, str]:
    """A virtual environment that sees everything installed here, but into which `pip` installs without changing it."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    own_packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    outer = sysconfig.get_path("purelib")
    Path(own_packages, "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    for name, code in {
        "slime": "from slime_core.cli import main as run; import sys; sys.exit(run())",
        "pip": "import runpy; runpy.run_module('pip', run_name='__main__')",
        "pytest": "import sys, pytest; sys.exit(pytest.console_main())",
    }.items():
        (venv / "bin" / name).write_text(f"#!{python}\n{code}\n")
        (venv / "bin" / name).chmod(0o755)
    # Isolation would fetch the build backend, which is installed already.
    pip = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
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


def test_the_page_is_read_as_it_is_meant():
    purposes = [block.purpose for block in blocks()]
    text = PAGE.read_text(encoding="utf-8")
    assert len(purposes) == text.count("```") // 2, "a block of the page was overlooked"
    assert {"write", "add", "run", "fail", "output"} == set(purposes)
    assert missing_lines("a … c\nb", "a and b and c") == []
    assert missing_lines("a … c\nz", "a and b\nc") == ["a … c", "z"]
