"""Fixtures of the tests of slime-report: small real runs, each made once, and one browser with the pages that it opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import Browser, chromium
from opened_pages import REPORTS

from slime_core.cli import main
from slime_report.page import render

Runs = Callable[..., Path]


@pytest.fixture(scope="session")
def small_rl(tiny_model: Path, chat_rows: Path) -> Runs:
    """`small_rl(folder, *options)` makes a run of GRPO on a tiny model and returns its folder."""

    def run(folder: Path, *options: str, status: int = 0) -> Path:
        words = [
            *("--hf-checkpoint", tiny_model, "--prompt-data", chat_rows, "--input-key", "messages"),
            *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "report_hooks.even_tokens"),
            *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
            *("--rollout-temperature", "0.8", "--lr", "1e-3", "--lr-decay-style", "constant"),
            *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "300", "--run-dir", folder, *options),
        ]
        assert main(["train", *map(str, words)]) == status
        return folder

    return run


@pytest.fixture(scope="session")
def rl_run(small_rl: Runs, chat_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rollouts that was stopped after three and went on, with evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "rl"
    more = ("--eval-prompt-data", "few", f"{chat_rows}@[0:4]", "--eval-interval", "2", "--save", str(folder / "save"))
    small_rl(folder, *more, "--num-rollout", "3")
    again = ("--load", str(folder / "save"), "--on-resume-change", "num_rollout=allow", "--on-resume-change", "warn")
    return small_rl(folder, *more, *again, "--num-rollout", "5")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    made = Browser(program, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, made in REPORTS.items():
        (folder / f"{name}.html").write_text(render(made), "utf-8")
    return {name: folder / f"{name}.html" for name in REPORTS}
