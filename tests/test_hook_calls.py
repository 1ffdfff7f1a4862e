"""Hooks are called when, in which order and with what `slime_core.hookspecs` and `slime_core.contracts` promise."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core import hookspecs
from slime_core.cli import main
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
from slime_core.sample import Sample

WATCHER = """
from slime_core import hookimpl
calls = []

@hookimpl
def slime_run_started(args, run_dir): calls.append(("run_started", dict(args=args, run_dir=run_dir)))

@hookimpl
def slime_rollout_finished(args, rollout_id, groups, metrics):
    calls.append(("rollout_finished", dict(args=args, rollout_id=rollout_id, groups=groups, metrics=metrics)))

@hookimpl
def slime_train_step_finished(args, rollout_id, step, metrics):
    calls.append(("train_step_finished", dict(args=args, rollout_id=rollout_id, step=step, metrics=metrics)))

@hookimpl
def slime_eval_finished(args, rollout_id, metrics):
    calls.append(("eval_finished", dict(args=args, rollout_id=rollout_id, metrics=metrics)))

@hookimpl
def slime_checkpoint_saved(args, rollout_id, path):
    calls.append(("checkpoint_saved", dict(args=args, rollout_id=rollout_id, path=path)))

@hookimpl
def slime_run_finished(args, error): calls.append(("run_finished", dict(args=args, error=error)))
"""

GENERATORS = """
async def greet(args, sample, sampling_params, engine):
    sample.response = engine.words * sampling_params["max_new_tokens"]
    return sample

async def forgetful(args, sample, sampling_params):
    sample.response = "lost"
"""


@pytest.fixture
def watcher(tmp_path, monkeypatch):
    """The module of an installed plugin that implements every observer and writes down how it is called."""
    site = tmp_path / "site"
    (site / "watcher-1.0.dist-info").mkdir(parents=True)
    (site / "watcher-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: watcher\nVersion: 1.0\n")
    (site / "watcher-1.0.dist-info" / "entry_points.txt").write_text("[slime]\nwatcher = watcher\n")
    (site / "watcher.py").write_text(WATCHER)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "watcher", raising=False)
    import watcher

    return watcher


def flags(model: Path, rows: Path, run_dir: Path) -> list[str]:
    words = ["--hf-checkpoint", str(model), "--prompt-data", str(rows), "--input-key", "messages"]
    words += ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--run-dir", str(run_dir)]
    words += [
        "--rollout-batch-size",
        "4",
        "--global-batch-size",
        "2",
        "--num-rollout",
        "2",
        "--save",
        f"{run_dir}/save",
    ]
    return [*words, "--save-interval", "1", "--eval-prompt-data", "few", f"{rows}@[0:2]", "--eval-interval", "2"]


def test_every_observer_is_told_everything_in_the_order_in_which_it_happens(watcher, tiny_model, chat_rows, tmp_path):
    assert main(["train", *flags(tiny_model, chat_rows, tmp_path / "run")]) == 0
    seen = [(name, told.get("step", told.get("rollout_id"))) for name, told in watcher.calls]
    assert seen == [
        ("run_started", None),
        ("eval_finished", -1),
        ("rollout_finished", 0),
        ("train_step_finished", 0),
        ("train_step_finished", 1),
        ("checkpoint_saved", 0),
        ("rollout_finished", 1),
        ("train_step_finished", 2),
        ("train_step_finished", 3),
        ("eval_finished", 1),
        ("checkpoint_saved", 1),
        ("run_finished", None),
    ]
    for name, told in watcher.calls:
        assert told.keys() == inspect.signature(getattr(hookspecs, f"slime_{name}")).parameters.keys()
        assert told["args"].rollout_batch_size == 4
    told = dict(watcher.calls)
    assert told["run_started"]["run_dir"] == tmp_path / "run"
    assert [len(group) for group in told["rollout_finished"]["groups"]] == [1, 1, 1, 1]
    assert {"loss", "lr", "grad_norm"} <= told["train_step_finished"]["metrics"].keys()
    assert "eval/few/loss" in told["eval_finished"]["metrics"]
    assert told["checkpoint_saved"]["path"].is_dir()
    assert told["run_finished"]["error"] is None


def test_the_end_of_a_run_is_told_once_with_the_error_that_ended_it(watcher, tiny_model, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "No answer."}]}\n' * 4)
    assert main(["train", *flags(tiny_model, tmp_path / "rows.jsonl", tmp_path / "run")]) == 1
    names = [name for name, _ in watcher.calls]
    assert (names.count("run_started"), names.count("run_finished")) == (1, 1)
    assert names[-1] == "run_finished"
    error = watcher.calls[-1][1]["error"]
    assert str(error) in capsys.readouterr().err


def test_a_generator_is_given_the_engine_that_it_names_and_its_answer_is_checked(tmp_path, monkeypatch):
    (tmp_path / "two_generators.py").write_text(GENERATORS)
    monkeypatch.syspath_prepend(tmp_path)
    engine, plugins = SimpleNamespace(words="hello "), Plugins()
    greet = plugins.select("generator", "two_generators.greet").bind(engine=engine)
    assert asyncio.run(greet(None, Sample(), {"max_new_tokens": 2})).response == "hello hello "
    forgetful = plugins.select("generator", "two_generators.forgetful").bind(engine=engine)
    with pytest.raises(PluginError, match=r"It returned None .*; expected a Sample"):
        asyncio.run(forgetful(None, Sample(), {}))
