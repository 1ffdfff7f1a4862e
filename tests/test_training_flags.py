"""Whole RL runs with slime's training flags: what each does to the numbers, and that a run which is resumed equals one that was
never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

REDUCER = ("--custom-pg-loss-reducer-function-path", "rl_hooks.over_three_tokens")


@pytest.fixture
def flags(tiny_model, chat_rows) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rl_hooks.even_tokens"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
        *("--rollout-temperature", "0.8", "--lr", "1e-3", "--num-rollout", "3", "--lr-decay-style", "constant"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "300"),
    ]


def run(folder: Path, flags: list[str], *more: str, command: str = "train") -> list[dict]:
    assert main([command, *flags, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    return [line for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def furthest(one: Path, other: Path) -> float:
    """The largest difference between the weights that two runs ended with."""
    theirs = weights(other)
    return max((tensor - theirs[name]).abs().max().item() for name, tensor in weights(one).items())


def test_a_reducer_that_divides_by_a_constant_is_the_constant_length_loss(flags, tmp_path):
    sgd = ("--optimizer", "sgd", "--weight-decay", "0", "--clip-grad", "0")
    run(tmp_path / "constant", flags, *sgd, "--constant-length-loss", "--lr", "0.1")  # over 6 tokens
    run(tmp_path / "own", flags, *sgd, *REDUCER, "--lr", "0.05")  # over 3
    run(tmp_path / "fast", flags, *sgd, *REDUCER, "--lr", "0.1")
    assert furthest(tmp_path / "own", tmp_path / "constant") < 1e-6
    assert furthest(tmp_path / "fast", tmp_path / "constant") > 1e-5


def test_mismatch_metrics_change_no_weight_and_are_the_trainers_own(flags, tmp_path):
    several = ("--num-steps-per-rollout", "2", "--use-rollout-logprobs")
    run(tmp_path / "plain", flags, *several)
    lines = run(tmp_path / "measured", flags, *several, "--get-mismatch-metrics")
    assert furthest(tmp_path / "plain", tmp_path / "measured") == 0.0
    # The log-probs that are compared are those before the first step, on which engine and trainer agree but for rounding.
    assert all(line["train/tis_abs"] < 1e-5 < line["train/ratio"] for line in lines)
    assert all(line["train/train_rollout_logprob_abs_diff"] > 1e-5 for line in lines), (
        "this one is under present weights"
    )


def test_sequences_that_the_policy_has_left_are_masked(flags, tmp_path):
    more = ("--num-steps-per-rollout", "3", "--use-opsm", "--lr", "1e-2")
    lines = run(tmp_path / "run", flags, *more, "--num-rollout", "2")
    assert any(line["train/opsm_clipfrac"] > 0 for line in lines)
    run(tmp_path / "wide", flags, *more, "--num-rollout", "2", "--opsm-delta", "100")
    assert furthest(tmp_path / "run", tmp_path / "wide") > 0


KL = ("--use-kl-loss", "--kl-loss-coef", "0.1", "--kl-loss-type", "k3")
LORA = ("--lora-rank", "2", "--lr", "1e-2")


@pytest.mark.parametrize("more", [(), LORA, ("--freeze-params-name-list", "embed")], ids=["all", "lora", "frozen"])
def test_the_reference_model_becomes_the_actor_every_so_many_rollouts(flags, tmp_path, more):
    lines = run(tmp_path / "run", flags, *more, *KL, "--ref-update-interval", "2", "--num-rollout", "5")
    # One step in a rollout: where the reference is the actor, every token's divergence is exactly 0.
    assert [line["train/kl_loss"] == 0.0 for line in lines] == [True, False, True, False, True]
    fixed = run(tmp_path / "fixed", flags, *more, *KL, "--num-rollout", "5")
    assert [line["train/kl_loss"] == 0.0 for line in fixed] == [True, False, False, False, False]


@pytest.mark.parametrize("adapters", [(), LORA], ids=["all", "lora"])
def test_a_reference_model_of_its_own_weights_is_kept_until_the_first_update(flags, tmp_path, capsys, adapters):
    run(tmp_path / "before", flags, "--num-rollout", "1", "--lr", "1e-2")
    more = (*KL, *adapters, "--ref-update-interval", "2", "--num-rollout", "4")
    foreign = ("--load", str(tmp_path / "before" / "hf"))
    capsys.readouterr()
    assert main(["check", *flags, *more, *foreign]) == 0
    assert "reference: weights" in capsys.readouterr().out
    lines = run(tmp_path / "whole", flags, *more, *foreign, *saving(tmp_path))
    assert [line["train/kl_loss"] == 0.0 for line in lines] == [False, False, True, False]
    for after in (1, 3):
        go_on(tmp_path, after, flags, *more)
        assert furthest(tmp_path / f"rest{after}", tmp_path / "whole") == 0.0


def test_a_critic_begins_with_the_actors_weights_unless_it_has_its_own(flags, tiny_model, tmp_path):
    run(tmp_path / "before", flags, "--num-rollout", "1", "--lr", "1e-2")
    trained, ppo = str(tmp_path / "before" / "hf"), ("--advantage-estimator", "ppo", "--num-rollout", "1")

    def gradient(name: str, *more: str) -> float:
        return run(tmp_path / name, flags, *ppo, *more)[0]["train/critic/grad_norm"]

    foreign, named = (gradient(option, option, trained) for option in ("--load", "--ref-load"))
    own = gradient("own", "--load", trained, "--critic-load", str(tiny_model))
    assert foreign == named
    assert own == gradient("both", "--ref-load", trained, "--critic-load", str(tiny_model)) != named


def versions(folder: Path) -> list[set[int]]:
    """The weights that every rollout was generated with."""
    files = sorted(folder.glob("*.jsonl"), key=lambda path: int(path.stem))
    return [
        {v for line in file.read_text().splitlines() for v in json.loads(line).get("weight_versions") or ()}
        for file in files
    ]


@pytest.mark.parametrize(("command", "expected"), [("train", [0, 0, 2, 2, 4]), ("train-async", [0, 0, 0, 2, 2])])
def test_the_engine_gets_new_weights_every_so_many_rollouts(flags, chat_rows, tmp_path, command, expected):
    dump = ("--save-debug-rollout-data", str(tmp_path / "dump" / "{rollout_id}.jsonl"))
    evaluated = ("--eval-prompt-data", "few", f"{chat_rows}@[0:2]", "--eval-interval", "1")  # changes nothing
    more = ("--update-weights-interval", "2", "--num-rollout", "5", *evaluated)
    run(tmp_path / "run", flags, *more, *dump, command=command)
    assert versions(tmp_path / "dump") == [{version} for version in expected]


@pytest.mark.parametrize(
    ("command", "interval", "generated"),
    [("train", "2", [0, 0, 2, 2]), ("train-async", "1", [0, 0, 1, 2]), ("train-async", "2", [0, 0, 0, 2])],
)
@pytest.mark.parametrize("steps", ["1", "3"])
def test_old_log_probs_are_those_of_the_weights_that_generated(flags, tmp_path, command, interval, generated, steps):
    more = (
        "--update-weights-interval",
        interval,
        "--num-rollout",
        "4",
        "--num-steps-per-rollout",
        steps,
        "--lr",
        "1e-2",
    )
    kept = run(tmp_path / "kept", flags, *more, "--keep-old-actor", command=command)
    # The engine's own log-probs are of those weights, too.
    assert all(line["train/train_rollout_logprob_abs_diff"] < 1e-5 for line in kept)
    moved = [version != rollout_id for rollout_id, version in enumerate(generated)]
    if steps == "1":
        assert [line["train/ppo_kl"] != 0.0 for line in kept] == moved  # exact, as a mean of zeros is
    plain = run(tmp_path / "plain", flags, *more, command=command)
    assert [line["train/train_rollout_logprob_abs_diff"] > 1e-5 for line in plain] == moved
    engines = run(tmp_path / "engine", flags, *more, "--use-rollout-logprobs", command=command)
    assert kept[1]["train/pg_loss"] == pytest.approx(engines[1]["train/pg_loss"], abs=1e-5)
    assert kept[1]["train/grad_norm"] == pytest.approx(engines[1]["train/grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("command", "more"),
    [
        pytest.param("train", ["--ref-update-interval", "2", *KL], id="reference"),
        pytest.param("train-async", ["--ref-update-interval", "2", *KL, *LORA], id="reference with adapters"),
        pytest.param("train", ["--update-weights-interval", "3"], id="interval"),
        pytest.param("train-async", ["--update-weights-interval", "2"], id="interval, one rollout ahead"),
        pytest.param("train", ["--update-weights-interval", "2", "--keep-old-actor"], id="interval and old actor"),
        pytest.param("train-async", ["--keep-old-actor", "--num-steps-per-rollout", "2"], id="old actor"),
    ],
)
def test_a_run_with_earlier_weights_goes_on_bit_for_bit(flags, tmp_path, command, more):
    more = [*more, "--num-rollout", "5"]
    run(tmp_path / "whole", flags, *more, *saving(tmp_path), command=command)
    for after in (1, 4):
        go_on(tmp_path, after, flags, *more, command=command)
        assert furthest(tmp_path / f"rest{after}", tmp_path / "whole") == 0.0
        last = [
            json.loads((tmp_path / save / "iter_0000004" / "state.json").read_text())
            for save in ("save", f"save{after}")
        ]
        assert last[0] == last[1], "it can be gone on from alike"


@pytest.mark.parametrize(
    ("kept", "more"),
    [("reference", [*KL, "--ref-update-interval", "1"]), ("version-", ["--update-weights-interval", "2"])],
    ids=["reference", "interval"],
)
def test_copies_that_a_run_has_no_use_for_are_not_carried_on(flags, tmp_path, kept, more):
    def copies(save: str) -> set[str]:
        stored = FileSystemReader(tmp_path / save / "iter_0000003" / "trainer").read_metadata().state_dict_metadata
        return {name for name in stored if f"kept.{kept}" in name}

    run(tmp_path / "whole", flags, *more, *saving(tmp_path), "--num-rollout", "4")
    assert copies("save")
    without = [word for word in more if word not in ("--ref-update-interval", "--update-weights-interval", "1", "2")]
    go_on(tmp_path, 2, flags, *without, "--num-rollout", "4", "--on-resume-change", "warn")
    assert not copies("save2")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--reset-optimizer-states", "--num-steps-per-rollout", "2"], id="reset"),
        pytest.param(["--only-train-params-name-list", r"layers\.1\."], id="a part"),
        pytest.param(["--use-kl-loss", "--kl-loss-coef", "0.1", "--use-unbiased-kl", "--use-opsm"], id="loss"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(flags, tmp_path, more):
    run(tmp_path / "whole", flags, *more, *saving(tmp_path))
    go_on(tmp_path, 1, flags, *more)
    assert furthest(tmp_path / "rest1", tmp_path / "whole") == 0.0
    run(tmp_path / "plain", flags)
    assert furthest(tmp_path / "plain", tmp_path / "whole") > 0, "the options act"


def saving(folder: Path) -> tuple[str, ...]:
    return ("--save", str(folder / "save"), "--save-interval", "1")


def go_on(folder: Path, after: int, flags: list[str], *more: str, command: str = "train") -> None:
    """Go on from what a run has saved after so many rollouts; the run's folder is `rest` and their number."""
    copy = shutil.copytree(folder / "save", folder / f"save{after}")
    for newer in copy.glob("iter_*"):
        if int(newer.name.removeprefix("iter_")) >= after:
            shutil.rmtree(newer)
    run(folder / f"rest{after}", flags, *more, "--load", str(copy), "--save", str(copy), command=command)
