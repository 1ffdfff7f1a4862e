"""Hooks are called when, in which order and with what `slime_core.hookspecs` and `slime_core.contracts` promise."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core import hookspecs
from slime_core.cli import main
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample

WATCHER = """
calls = []
numbers = []

@hookimpl
def slime_run_started(args, run_dir): calls.append(("run_started", dict(args=args, run_dir=run_dir)))

@hookimpl
def slime_rollout_finished(args, rollout_id, groups, metrics):
    calls.append(("rollout_finished", dict(args=args, rollout_id=rollout_id, groups=groups, metrics=metrics)))

@hookimpl
def slime_before_log_probs(args, rollout_id):
    calls.append(("before_log_probs", dict(args=args, rollout_id=rollout_id)))

@hookimpl
def slime_before_train_step(args, rollout_id, step):
    calls.append(("before_train_step", dict(args=args, rollout_id=rollout_id, step=step)))

@hookimpl
def slime_weights_updated(args, version, seconds):
    calls.append(("weights_updated", dict(args=args, version=version, seconds=seconds)))

@hookimpl
def slime_train_step_finished(args, rollout_id, step, metrics):
    calls.append(("train_step_finished", dict(args=args, rollout_id=rollout_id, step=step, metrics=metrics)))

@hookimpl
def slime_rollout_trained(args, rollout_id, tokens):
    found = [tokens.of(place) for place in range(len(tokens.samples))]
    calls.append(("rollout_trained", dict(args=args, rollout_id=rollout_id, tokens=tokens)))
    numbers.append(found)

@hookimpl
def slime_eval_finished(args, rollout_id, metrics):
    calls.append(("eval_finished", dict(args=args, rollout_id=rollout_id, metrics=metrics)))

@hookimpl
def slime_checkpoint_saved(args, rollout_id, path):
    calls.append(("checkpoint_saved", dict(args=args, rollout_id=rollout_id, path=path)))

@hookimpl
def slime_run_finished(args, error): calls.append(("run_finished", dict(args=args, error=error)))
"""

COMPONENTS = """
from dataclasses import replace
from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.loss import LossOutputs, reads
from slime_core.contracts.rollout import uses_engine
from slime_core.sample import RolloutOutput, Status

calls = []

@uses_engine("always")
def rewarded(args, rollout_id, data_source, evaluation=False, engine=None):
    "Two answers to each prompt, rewarded 1 and 0; the same ones in evaluations."
    groups = [
        [
            replace(s, tokens=[5, 6, 7, 8], response_length=2, response="7 8", status=Status.COMPLETED,
                    rollout_log_probs=[-2.0, -3.0], reward=float(i), metadata={"slime": {"dataset": "few"}})
            for i, s in enumerate(group)
        ]
        for group in data_source.get_samples(args.rollout_batch_size)
    ]
    samples = [s for group in groups for s in group]
    return RolloutOutput([], generations=samples) if evaluation else RolloutOutput(groups, {"answers": 8.0})

def convert(args, samples):
    calls.append(("convert", samples))
    return {"loss_masks": [[0, 1]] * len(samples)}

def post_process(args, samples):
    calls.append(("post_process", samples))
    return [s.reward for s in samples], [2 * s.reward for s in samples]

@reads(lambda args: {"old_log_probs"})
def advantage(args, inputs):
    calls.append(("advantage", inputs))
    return AdvantageOutputs((inputs.rewards - 1)[inputs.sample_index] * inputs.loss_mask)

def weight(args, inputs):
    calls.append(("weight", inputs))
    weights = (inputs.old_log_probs - inputs.rollout_log_probs).exp().clamp(max=2.0)
    return weights, {"weight": inputs.measured(weights)}

@reads(lambda args: {"old_log_probs", "rollout_log_probs", "advantages"})
def loss(args, inputs, importance_weight):
    calls.append(("loss", inputs))
    old = inputs.log_probs.detach() if inputs.old_log_probs is None else inputs.old_log_probs
    weights, metrics = importance_weight(args, replace(inputs, old_log_probs=old))
    return LossOutputs(inputs.reduce(-weights * inputs.log_probs * inputs.advantages), metrics)

def log(rollout_id, args, samples, rollout_extra_metrics, rollout_time):
    calls.append(("log", (rollout_id, samples, rollout_extra_metrics)))
    return True

def eval_log(rollout_id, args, data, extra_metrics):
    calls.append(("eval_log", (rollout_id, data)))
    return True
"""

TRACKER = """
class Tracker:
    def __init__(self, args, run_dir, config): ...
    def log(self, metrics, step): ...
    def close(self, error): raise OSError("the line is dead")
"""

GENERATORS = """
async def greet(args, sample, sampling_params, engine):
    sample.response = engine.words * sampling_params["max_new_tokens"]
    return sample

async def forgetful(args, sample, sampling_params):
    sample.response = "lost"
"""


@pytest.fixture
def watcher(install_plugin):
    """The module of an installed plugin that implements every observer and writes down how it is called."""
    install_plugin(WATCHER, "watcher")
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
    words = ["--disable-compute-advantages-and-returns", *flags(tiny_model, chat_rows, tmp_path / "run")]
    assert main(["train", *words]) == 0
    seen = [(name, told.get("step", told.get("rollout_id"))) for name, told in watcher.calls]
    assert seen == [
        ("run_started", None),
        ("eval_finished", -1),
        ("rollout_finished", 0),
        ("before_train_step", 0),
        ("train_step_finished", 0),
        ("before_train_step", 1),
        ("train_step_finished", 1),
        ("rollout_trained", 0),
        ("checkpoint_saved", 0),
        ("rollout_finished", 1),
        ("before_train_step", 2),
        ("train_step_finished", 2),
        ("before_train_step", 3),
        ("train_step_finished", 3),
        ("rollout_trained", 1),
        ("eval_finished", 1),
        ("checkpoint_saved", 1),
        ("run_finished", None),
    ]
    expect_what_is_specified(watcher.calls)
    told = dict(watcher.calls)
    assert told["run_started"]["run_dir"] == tmp_path / "run"
    assert [len(group) for group in told["rollout_finished"]["groups"]] == [1, 1, 1, 1]
    assert {"loss", "lr", "grad_norm"} <= told["train_step_finished"]["metrics"].keys()
    assert "eval/few/loss" in told["eval_finished"]["metrics"]
    assert told["checkpoint_saved"]["path"].is_dir()
    assert told["run_finished"]["error"] is None
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    for line, numbers in zip(lines, watcher.numbers, strict=True):
        kept = [[x for x in sample["log_probs"] if x is not None] for sample in numbers]
        losses = [-sum(sample) / len(sample) for sample in kept]
        assert sum(losses) / 4 == pytest.approx(line["train/loss"], rel=1e-5), "what the loss was given, by sample"


def expect_what_is_specified(calls):
    for name, told in calls:
        assert told.keys() == inspect.signature(getattr(hookspecs, f"slime_{name}")).parameters.keys()
        assert told["args"].rollout_batch_size == 4


@pytest.fixture
def components(tmp_path, monkeypatch):
    """The module `my_parts`, which import paths may name."""
    (tmp_path / "my_parts.py").write_text(COMPONENTS)
    monkeypatch.syspath_prepend(tmp_path)
    import my_parts

    return my_parts


def test_components_of_reinforcement_learning_are_called_as_their_contracts_say(
    watcher, components, tiny_model, chat_rows, tmp_path
):
    """One run that chooses all of them by import path; what each is given, and what becomes of what it returns."""
    words = flags(tiny_model, chat_rows, tmp_path / "run")
    words += ["--rollout-function-path", "my_parts.rewarded", "--n-samples-per-prompt", "2", "--num-rollout", "1"]
    words += ["--rollout-engine", "slime_core.testing.EchoEngine", "--global-batch-size", "4", "--eval-interval", "1"]
    words += ["--loss-type", "custom_loss", "--custom-loss-function-path", "my_parts.loss"]
    words += ["--custom-convert-samples-to-train-data-path", "my_parts.convert"]
    words += ["--custom-reward-post-process-path", "my_parts.post_process"]
    words += ["--custom-advantage-function-path", "my_parts.advantage"]
    words += ["--custom-tis-function-path", "my_parts.weight"]
    words += ["--custom-rollout-log-function-path", "my_parts.log"]
    words += ["--custom-eval-rollout-log-function-path", "my_parts.eval_log"]
    assert main(["train", *words, "--skip-eval-before-train"]) == 0

    order = list(dict.fromkeys(name for name, _ in components.calls))
    assert order == ["convert", "post_process", "advantage", "loss", "weight", "log", "eval_log"]
    called = dict(components.calls)
    assert [sample.reward for sample in called["post_process"]] == [0.0, 1.0] * 4
    assert all(sample.loss_mask == [0, 1] for sample in called["post_process"])
    inputs = called["advantage"]
    assert inputs.rewards.tolist() == [0.0, 2.0] * 4
    assert inputs.rewards_are_final
    assert inputs.loss_mask.tolist() == [0.0, 1.0] * 8
    assert inputs.log_probs.shape == (16,)
    losses = [inputs for name, inputs in components.calls if name == "loss"]
    assert sorted(a for i in losses for a in i.advantages.tolist()) == [-1.0] * 4 + [1.0] * 4
    rollout_id, samples, metrics = called["log"]
    assert (rollout_id, len(samples), metrics) == (0, 8, {"answers": 8.0})
    rollout_id, data = called["eval_log"]
    assert (rollout_id, data["few"]["rewards"]) == (0, [0.0, 1.0] * 4)

    (trained,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 < trained["train/weight"] <= 2.0
    assert not [name for name in trained if name.startswith("rollout/")], "the log function said that it has logged all"
    assert dict(watcher.calls)["eval_finished"]["metrics"]["eval/few/reward"] == 0.5, "whoever logs it"
    assert list((tmp_path / "run" / "eval").iterdir())
    kinds = {"rollout", "loss", "importance_weight", "advantage", "reward_post_process", "sample_converter"}
    for name in (*kinds, "slime_before_train_step", "slime_rollout_finished"):
        assert trained[f"perf/hooks/{name}/calls"] >= 1
        assert trained[f"perf/hooks/{name}/seconds"] > 0
    assert trained["perf/hooks/loss/calls"] == trained["perf/hooks/importance_weight/calls"] == len(losses)

    expect_what_is_specified(watcher.calls)
    (numbers,) = watcher.numbers
    assert [sample["advantages"] for sample in numbers] == [[None, -1.0], [None, 1.0]] * 4
    assert [sample["rollout_log_probs"][0] for sample in numbers] == [None] * 8, (
        "no token is told of that is not trained"
    )
    for name in ("log_probs", "old_log_probs"):
        assert all(sample[name][0] is None and sample[name][1] < 0 for sample in numbers)
    assert "entropy" not in numbers[0], "the loss does not read it"
    seen = [(name, told.get("step", told.get("version"))) for name, told in watcher.calls]
    assert [s for s in seen if s[0] in ("weights_updated", "before_log_probs", "before_train_step")] == [
        ("weights_updated", 0),
        ("before_log_probs", None),
        ("before_train_step", 0),
        ("before_train_step", 1),
        ("weights_updated", 1),
    ]


def test_the_end_of_a_run_is_told_once_with_the_error_that_ended_it(
    watcher, tiny_model, tmp_path, monkeypatch, capsys, caplog
):
    good = '{"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "3"}]}\n'
    bad = '{"messages": [{"role": "user", "content": "No answer."}]}\n'  # behind the first row, which is looked at before the run
    (tmp_path / "rows.jsonl").write_text(good + bad * 3)
    (tmp_path / "clumsy.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path)
    words = flags(tiny_model, tmp_path / "rows.jsonl", tmp_path / "run")
    assert main(["train", *words, "--tracker", "clumsy.Tracker"]) == 1
    names = [name for name, _ in watcher.calls]
    assert (names.count("run_started"), names.count("run_finished")) == (1, 1)
    assert names[-1] == "run_finished"
    error = watcher.calls[-1][1]["error"]
    assert str(error) in capsys.readouterr().err
    assert "the line is dead" in caplog.text


def test_a_generator_is_given_the_engine_that_it_names_and_its_answer_is_checked(tmp_path, monkeypatch):
    (tmp_path / "two_generators.py").write_text(GENERATORS)
    monkeypatch.syspath_prepend(tmp_path)
    engine, plugins = SimpleNamespace(words="hello "), Plugins()
    greet = plugins.select("generator", "two_generators.greet").bind(engine=engine)
    assert asyncio.run(greet(None, Sample(), {"max_new_tokens": 2})).response == "hello hello "
    forgetful = plugins.select("generator", "two_generators.forgetful").bind(engine=engine)
    with pytest.raises(PluginError, match=r"It returned None .*; expected a Sample"):
        asyncio.run(forgetful(None, Sample(), {}))


def test_a_process_of_all_samples_may_give_groups_back(tmp_path, monkeypatch):
    (tmp_path / "again.py").write_text(
        "def hard_ones(args, all_samples, data_source):\n"
        "    data_source.add_samples([g for g in all_samples if not any(s.reward for s in g)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source, given = [], [[Sample(reward=0.0)], [Sample(reward=1.0)]]
    process = Plugins().select("all_samples_process", "again.hard_ones", "--rollout-all-samples-process-path")
    assert process(None, given, SimpleNamespace(add_samples=source.extend)) is None
    assert source == given[:1]
