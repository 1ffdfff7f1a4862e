"""Whole RL runs on a tiny model: real engine, real trainer, real weight hand-over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import rl_hooks
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

ROLLOUTS = 3


@pytest.fixture
def flags(tiny_model, chat_rows, tmp_path) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rl_hooks.even_tokens"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
        *("--rollout-temperature", "0.8", "--lr", "1e-3", "--num-rollout", str(ROLLOUTS)),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "300"),
    ]


SGD = ("--optimizer", "sgd", "--lr", "0.1")  # Adam makes any difference in a tiny gradient as large as a step


def run(folder: Path, flags: list[str], *more: str, command: str = "train") -> list[dict]:
    assert main([command, *flags, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    return read_metrics(folder / "metrics.jsonl")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    theirs = weights(other)
    for name, tensor in weights(one).items():
        assert (tensor - theirs[name]).abs().max().item() <= tolerance, name


def test_the_first_on_policy_step_has_ratio_1_kl_0_and_the_engines_log_probs(flags, tmp_path):
    lines = run(tmp_path / "run", flags)
    for line in lines:
        assert line["train/ratio"] == pytest.approx(1.0, abs=1e-7)
        assert line["train/ppo_kl"] == line["train/pg_clipfrac"] == 0.0
        assert 0.0 <= line["train/train_rollout_logprob_abs_diff"] < 1e-5
        assert line["train/grad_norm"] > 0
    assert lines[0]["rollout/raw_reward"] > 0


def test_the_model_learns_what_is_rewarded(flags, tmp_path):
    lines = run(tmp_path / "run", flags, "--num-rollout", "20", "--lr", "1e-2", "--rollout-top-k", "8")
    last = sum(line["rollout/raw_reward"] for line in lines[-5:]) / 5
    assert last > lines[0]["rollout/raw_reward"] + 0.2


def test_sharing_prompts_and_skipping_zero_advantages_change_no_number(flags, tmp_path):
    run(tmp_path / "fast", flags, *SGD)
    run(tmp_path / "plain", flags, *SGD, "--no-share-prompts", "--no-skip-zero-advantages")
    assert_close(tmp_path / "fast", tmp_path / "plain", 1e-6)


def test_the_result_does_not_depend_on_micro_batches(flags, tmp_path):
    run(tmp_path / "one", flags, *SGD)
    run(tmp_path / "other", flags, *SGD, "--max-tokens-per-gpu", "60")
    assert_close(tmp_path / "one", tmp_path / "other", 1e-6)


async def equal_in_every_second_group(args, sample) -> float:
    return 1.0 if sample.group_index % 2 else float(sample.tokens[-1] % 2)


def test_means_over_steps_leave_out_those_in_which_nothing_was_computed(flags, tmp_path):
    """Of the two steps one has the group whose rewards are equal."""
    more = ("--rollout-batch-size", "2", "--num-steps-per-rollout", "2", "--num-rollout", "1", "--get-mismatch-metrics")
    (line,) = run(tmp_path / "run", flags, *more, "--custom-rm-path", "test_rl_runs.equal_in_every_second_group")
    assert line["train/num_skipped_samples"] == 3
    assert line["train/ratio"] == pytest.approx(1.0, abs=0.2)
    assert line["train/tis"] == pytest.approx(1.0, abs=0.2)


def test_a_group_without_spread_leaves_the_weights_as_they_are(flags, tiny_model, tmp_path):
    words = ("--custom-rm-path", "rl_hooks.same_for_all", "--weight-decay", "0")
    lines = run(tmp_path / "run", flags, *words)
    assert all(line["train/num_skipped_samples"] == 12 and line["train/grad_norm"] == 0 for line in lines)
    assert all(line.keys() >= {"train/loss", "train/pg_loss"} and "train/ratio" not in line for line in lines)
    before = load_file(tiny_model / "model.safetensors")
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "run").items() if name in before
    )


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--num-steps-per-rollout", "3"], id="several steps"),
        pytest.param(["--use-kl-loss", "--kl-loss-coef", "0.1", "--entropy-coef", "0.01"], id="kl and entropy"),
        pytest.param(
            ["--advantage-estimator", "ppo", "--kl-coef", "0.05", "--num-steps-per-rollout", "2"], id="critic"
        ),
        pytest.param(["--advantage-estimator", "reinforce_plus_plus", "--kl-coef", "0.01"], id="reinforce++"),
        pytest.param(["--advantage-estimator", "gspo"], id="gspo"),
        pytest.param(["--loss-type", "cispo", "--calculate-per-token-loss"], id="cispo"),
        pytest.param(["--constant-length-loss", "--disable-grpo-std-normalization"], id="dr. grpo"),
        pytest.param(["--use-tis"], id="tis"),
        pytest.param(["--use-rollout-logprobs", "--num-steps-per-rollout", "2"], id="rollout log-probs"),
        pytest.param(["--custom-reward-post-process-path", "rl_hooks.double_rewards"], id="own rewards"),
    ],
)
def test_every_algorithm_trains_and_resumes_bit_for_bit(flags, tmp_path, more):
    more = [*more, "--lr-decay-style", "constant"]
    lines = run(tmp_path / "whole", flags, *more, "--num-rollout", "2")
    assert all(line["train/grad_norm"] > 0 for line in lines)
    save = ("--save", str(tmp_path / "save"))
    run(tmp_path / "part", flags, *more, *save, "--num-rollout", "1")
    again = ("--load", str(tmp_path / "save"), "--on-resume-change", "warn")  # that the run is longer now
    run(tmp_path / "rest", flags, *more, *save, *again, "--num-rollout", "2")
    assert_close(tmp_path / "rest", tmp_path / "whole", 0.0)


@pytest.mark.parametrize("command", ["train", "train-async"])
def test_a_run_with_half_generated_groups_resumes_bit_for_bit(flags, tmp_path, command):
    """And has a dump of every rollout: of the samples that a checkpoint holds none is made again."""
    dumps = tmp_path / "dumps"
    more = (
        *("--num-rollout", "5", "--partial-rollout", "--over-sampling-batch-size", "6", "--lr-decay-style", "constant"),
        *("--dynamic-sampling-filter-path", "rl_hooks.in_half_of_the_groups"),
    )
    whole = run(tmp_path / "whole", flags, *more, command=command)
    save = ("--save", str(tmp_path / "save"), "--save-interval", "2", "--num-rollout", "5")
    more += ("--dump-details", str(dumps))
    run(tmp_path / "part", flags, *more, *save, command=command)
    for newer in (tmp_path / "save").glob("iter_*"):
        if int(newer.name.removeprefix("iter_")) > 1:
            shutil.rmtree(newer)
    rest = run(tmp_path / "rest", flags, *more, "--load", str(tmp_path / "save"), command=command)
    assert_close(tmp_path / "rest", tmp_path / "whole", 0.0)
    for kind, first in (("rollout_data", 2 if command == "train" else 3), ("train_data", 2)):
        assert sorted(path.stem for path in dumps.glob(f"{kind}/*.arrow")) == list("01234")
        assert sorted(path.stem for path in dumps.glob(f"{kind}/earlier-1/*.arrow")) == list("01234")[first:]
    tail = [{k: v for k, v in line.items() if "perf/" not in k and "time" not in k} for line in whole[2:]]
    assert [{k: v for k, v in line.items() if "perf/" not in k and "time" not in k} for line in rest] == tail


@pytest.mark.parametrize(
    "ending",
    [
        ("--rollout-max-response-len", "60", "--rollout-stop", *"abcdefghijklm"),
        pytest.param(("--rollout-max-response-len", "4"), id="all at once"),
    ],
)
def test_what_is_sampled_does_not_depend_on_how_long_sample_hooks_take(ending, flags, tmp_path, monkeypatch):
    more = "--over-sampling-batch-size", "6", "--rollout-sample-hook-path", "rl_hooks.look_for_a_while", *ending
    sampled = []
    for seconds in (0.0, 0.01, 0.03):
        monkeypatch.setattr("rl_hooks.LOOKS_S", seconds)
        lines = run(tmp_path / str(seconds), flags, *more, "--num-rollout", "2")
        sampled.append([{k: v for k, v in line.items() if k.startswith("rollout/")} for line in lines])
    assert sampled[0] == sampled[1] == sampled[2]
    assert sampled[0][0]["rollout/aborted_tokens_discarded"] > 0


def test_a_slow_sample_hook_keeps_no_other_sample_waiting_where_nothing_depends_on_their_order(
    flags, tmp_path, monkeypatch
):
    monkeypatch.setattr("rl_hooks.scored", [])
    hooks = "--rollout-sample-hook-path", "rl_hooks.wait_for_others", "--custom-rm-path", "rl_hooks.note_and_score"
    run(tmp_path / "run", flags, *hooks, "--rollout-max-response-len", "4", "--num-rollout", "1")
    assert 0 in rl_hooks.scored


def test_a_dumped_rollout_trains_to_the_same_weights_without_an_engine(flags, tmp_path):
    dump = str(tmp_path / "dump" / "{rollout_id}.jsonl")
    run(tmp_path / "run", flags, "--save-debug-rollout-data", dump)
    run(tmp_path / "replay", flags, "--load-debug-rollout-data", dump)
    assert_close(tmp_path / "run", tmp_path / "replay", 0.0)


def test_rollouts_alone_need_no_trainer(flags, tmp_path):
    dump = tmp_path / "dump"
    words = ("--debug-rollout-only", "--save-debug-rollout-data", str(dump / "{rollout_id}.jsonl"))
    assert main(["train", *flags, *words, "--run-dir", str(tmp_path / "run")]) == 0
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert not [name for name in line if "staleness" in name or "update_weights" in name]
    run(tmp_path / "trained", flags, "--save-debug-rollout-data", str(tmp_path / "other" / "{rollout_id}.jsonl"))
    first, other = (folder / "0.jsonl" for folder in (dump, tmp_path / "other"))
    strip = lambda file: [json.loads(line).get("tokens") for line in file.read_text().splitlines()]  # noqa: E731
    assert strip(first) == strip(other)
    assert len(list(dump.iterdir())) == ROLLOUTS


def test_a_projects_own_log_function_takes_the_place_of_slimes_metrics(flags, tmp_path):
    lines = run(tmp_path / "run", flags, "--custom-rollout-log-function-path", "rl_hooks.log_reward_to_file")
    assert (tmp_path / "run" / "own.log").read_text().splitlines() == [f"{n} 12 True" for n in range(ROLLOUTS)]
    assert not any(name.startswith("rollout/") and name != "rollout_id" for line in lines for name in line)


def test_an_evaluation_measures_rewards_before_and_after(flags, chat_rows, tmp_path):
    words = ("--eval-prompt-data", "held", f"{chat_rows}@[0:4]", "--eval-interval", "3", "--eval-temperature", "0")
    lines = run(tmp_path / "run", flags, *words)
    assert [line["rollout_id"] for line in lines if "eval/held/reward" in line] == [-1, 2]


def test_one_step_off_policy_samples_are_made_by_the_weights_before(flags, tmp_path):
    dump = tmp_path / "dump"
    words = ("--save-debug-rollout-data", str(dump / "{rollout_id}.jsonl"))
    lines = run(tmp_path / "run", flags, *words, command="train-async")
    versions = []
    for rollout in range(ROLLOUTS):
        samples = [json.loads(line) for line in (dump / f"{rollout}.jsonl").read_text().splitlines()[1:]]
        versions.append({version for sample in samples for version in sample["weight_versions"]})
    assert versions == [{0}, {0}, {1}]
    for name in ("mean", "max", "older_share"):
        assert [line[f"rollout/staleness/{name}"] for line in lines] == [0.0, 1.0, 1.0]


def test_an_evaluation_leaves_the_rollout_that_is_being_made_its_weights(flags, chat_rows, tmp_path):
    words = ("--rollout-engine", "rl_hooks.SendingEngine", "--num-rollout", "2", "--skip-eval-before-train")
    words += ("--eval-prompt-data", "held", f"{chat_rows}@[0:2]", "--eval-interval", "1")
    lines = run(tmp_path / "run", flags, *words, command="train-async")
    assert [line["rollout/staleness/mean"] for line in lines if "train/loss" in line] == [0.0, 1.0]


@pytest.mark.parametrize("command", ["train", "train-async"])
def test_the_time_of_a_rollout_is_training_and_waiting_of_which_the_weight_update_is_a_part(flags, tmp_path, command):
    lines = run(tmp_path / "run", flags, "--rollout-engine", "rl_hooks.SendingEngine", command=command)
    for line in lines:
        assert line["perf/rollout_time"] == pytest.approx(line["perf/train_time"] + line["perf/data_wait_time"])
        assert line["perf/data_wait_share"] == line["perf/data_wait_time"] / line["perf/rollout_time"]
        assert line["perf/data_wait_time"] >= line["perf/update_weights_time"]
    # One step off, the engine takes the weights for the next rollout before this one is trained, and then there is none.
    updated = [True, True, command == "train"]
    assert [line["perf/update_weights_time"] >= rl_hooks.UPDATE_S for line in lines] == updated
