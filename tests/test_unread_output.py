"""A command whose output nobody reads any more ends without a traceback, and a run goes on without a reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def first_line(words: list[str], cwd: Path) -> tuple[int, str]:
    """Run `slime` until the reader of all its output has gone away after one line; return its exit status and that line."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "slime_core", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        line = process.stdout.readline() if process.stdout else ""
        if process.stdout:
            process.stdout.close()
    return process.returncode, line


ERRORS = "import sys; sys.stderr = open(sys.argv.pop(1), 'w'); from slime_core.cli import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("words", "statuses"),
    [
        (["plugins", "--components"], {141}),
        (["train", "--help"], {0, 141}),  # argparse itself takes no notice
        (["--help"], {141}),
        (["no-such-command"], {2}),  # which prints nothing there
    ],
)
def test_a_command_whose_reader_is_gone_says_nothing_of_it(
    tmp_path: Path, words: list[str], statuses: set[int]
) -> None:
    errors = tmp_path / "errors.txt"
    reader = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    reader.wait()  # it is gone before anything is written
    assert reader.stdin
    done = subprocess.run([sys.executable, "-c", ERRORS, str(errors), *words], stdout=reader.stdin, check=False)
    reader.stdin.close()
    said = errors.read_text()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert done.returncode in statuses


def test_a_run_goes_on_without_a_reader(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> None:
    words = ["train", "--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    words += ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "2"]
    words += ["--disable-compute-advantages-and-returns", "--num-rollout", "3", "--run-dir", str(tmp_path / "run")]
    status, line = first_line(words, tmp_path)
    assert line.startswith("run directory:")
    events = [json.loads(event) for event in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/loss" in event for event in events) == 3
    assert status in (0, 141)
