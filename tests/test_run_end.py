"""What a run opens is closed once, however it ends: data sources and train backends."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from slime_core.cli import main

CLOSING = """
from pathlib import Path
from slime_core.data import GlobalDataSource
from slime_core.testing import EchoEngine
from slime_torch.backend import TorchBackend

def note(args, what):
    with (Path(args.prompt_data[0]).parent / "closed").open("a") as file:
        file.write(what + "\\n")

class Source(GlobalDataSource):
    def close(self): note(self.args, "source")

class Stuck(Source):
    def get_samples(self, num_samples): raise OSError("the line is dead")

class Backend(TorchBackend):
    def __init__(self, args):
        super().__init__(args)
        self.own = args
    def close(self):
        super().close()
        note(self.own, "backend")

class Late(Backend):
    def setup(self, loss, total_steps, role="actor"): raise OSError("no model")

class NoReference(Backend):
    def setup(self, loss, total_steps, role="actor"):
        if role == "reference":
            raise OSError("no reference")
        super().setup(loss, total_steps, role)

class Broken(TorchBackend):
    def __init__(self, args): raise OSError("no backend")

class NoEngine(EchoEngine):
    def __init__(self, args): raise OSError("no engine")

class NoTracker:
    def __init__(self, args, run_dir, config): raise OSError("no server")
    def log(self, metrics, step): ...
    def close(self, error): ...
"""


@pytest.fixture
def rows(chat_rows, tmp_path) -> Path:
    """The rows in a folder of their own, in which the components note that they were closed."""
    path = tmp_path / "rows" / "rows.jsonl"
    path.parent.mkdir()
    path.write_bytes(chat_rows.read_bytes())
    return path


SOURCE, BACKEND = ["--data-source-path", "open_pack.Source"], ["--train-backend", "open_pack.Backend"]


@pytest.mark.parametrize(
    ("words", "status", "closed"),
    [
        ([], 0, ["backend", "source"]),
        (["--data-source-path", "open_pack.Stuck"], 1, ["backend", "source"]),
        (["--train-backend", "open_pack.Late"], 1, ["backend", "source"]),
        (["--train-backend", "open_pack.Broken"], 1, ["source"]),
        (["--rollout-engine", "open_pack.NoEngine"], 1, ["source"]),
        (["--tracker", "open_pack.NoTracker"], 1, ["source"]),
        (["--use-kl-loss", "--kl-loss-coef", "0.1", "--loss-type", "policy_loss"], 0, ["backend", "backend", "source"]),
        (
            [
                "--use-kl-loss",
                "--kl-loss-coef",
                "0.1",
                "--loss-type",
                "policy_loss",
                "--train-backend",
                "open_pack.NoReference",
            ],
            1,
            ["backend", "backend", "source"],
        ),
    ],
    ids=["ends", "rollout", "setup", "backend", "engine", "tracker", "reference", "no reference"],
)
def test_what_a_run_opened_is_closed_once_however_it_ends(install_plugin, sft, rows, words, status, closed):
    install_plugin(CLOSING)
    assert main(["train", *sft, "--prompt-data", str(rows), *SOURCE, *BACKEND, *words]) == status
    assert sorted((rows.parent / "closed").read_text().split()) == closed


def test_what_was_opened_for_a_run_that_does_not_start_is_closed_too(install_plugin, sft, rows, tmp_path):
    install_plugin(CLOSING)
    words = [*sft, "--prompt-data", str(rows), *SOURCE]
    assert main(["check", *words]) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages:\n- {lr: 0.1}\n- {failure_policy: loss:retries=1}\n")
    assert main(["train", str(recipe), *words]) == 2
    place = words.index("--num-rollout")
    assert main(["train", *words[:place], *words[place + 2 :], "--num-epoch", "1", "--rollout-batch-size", "99"]) == 2
    assert (rows.parent / "closed").read_text().split() == [
        "source"
    ] * 4  # once for the check, both stages, and too few prompts


STARTS = """
import subprocess
from slime_core.data import GlobalDataSource

started = {}

def start(who): started[who] = subprocess.Popen(["sleep", "600"])

def end(who):
    if who != kept:
        started[who].kill()
        started[who].wait()

class Source(GlobalDataSource):
    def get_samples(self, num_samples):
        start("source")
        return super().get_samples(num_samples)
    def close(self): end("source")

class Tracker:
    def __init__(self, args, run_dir, config): start("tracker")
    def log(self, metrics, step): ...
    def close(self, error): end("tracker")

@hookimpl
def slime_run_started(): start("observer")

@hookimpl
def slime_run_finished(): end("observer")
"""


def test_a_process_is_left_behind_only_if_its_component_does_not_end_it_when_it_is_closed(
    install_plugin, sft, tmp_path, caplog
):
    kinds = ("source", "tracker", "observer")
    components = ["--data-source-path", "open_pack.Source", "--tracker", "open_pack.Tracker"]
    install_plugin(STARTS)
    for kept in (None, *kinds):
        caplog.clear()
        pack = importlib.import_module("open_pack")
        pack.kept = kept
        try:
            assert main(["train", *sft, "--run-dir", str(tmp_path / str(kept)), *components]) == 0
            named = {kind for kind in kinds if f"process {pack.started[kind].pid}, which" in caplog.text}
            assert named == {kept} - {None}
        finally:
            for process in pack.started.values():
                process.kill()
                process.wait()
