"""The same run on Ray: real actors on this machine's CPUs. Same numbers, same errors, and an end when a worker dies."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.run import on_ray as ray_runs
from slime_core.run.tracking import read_metrics
from slime_core.runtime.actor_handles import ActorHandle
from slime_report.reading.samples import read_samples

SHARED = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "1"}
"""What ranks have in common with servers, where the user has set the second."""


@pytest.fixture
def sft(tiny_model, chat_rows) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--rollout-batch-size", "4", "--lr", "1e-2", "--num-rollout", "4", "--rollout-shuffle"),
        *("--eval-prompt-data", f"{chat_rows}@[0:6]", "--eval-interval", "2", "--debug-train-only"),
    ]


@pytest.fixture
def grpo(tiny_model, chat_rows) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "cluster_hooks.even_tokens"),
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
        *("--lr", "1e-3", "--num-rollout", "3"),
    ]


def run(command: str, folder: Path, flags: list[str], *more: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    assert main([command, *flags, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    lines = [
        {name: value for name, value in line.items() if name != "time" and not name.startswith("perf/")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    return lines, load_file(folder / "hf" / "model.safetensors")


def kept_samples(folder: Path) -> dict[str, list[float]]:
    """The samples that all ranks of a run have recorded together, with the log-probs of their trained tokens."""
    rows, _ = read_samples(folder / "record", 10**7)
    return {row.id: [value for value in row.log_prob or () if value is not None] for row in rows}


def assert_same(one: tuple[list[dict], dict], other: tuple[list[dict], dict]) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


def test_sft_on_ray_is_the_run_in_one_process_bit_for_bit(cluster, sft, tmp_path, capfd, monkeypatch):
    here = run("train-async", tmp_path / "here", sft)
    monkeypatch.delattr(ActorHandle, "fetch")  # the driver never holds the samples of a rollout
    there = run("train-async", tmp_path / "there", sft, "--ray-address", "local")
    assert_same(here, there)
    assert kept_samples(tmp_path / "here") == kept_samples(tmp_path / "there") != {}
    told = capfd.readouterr().err
    pids = {int(pid) for pid in re.findall(r"(?:training rank 0|rollout worker): process (\d+) on", told)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_grpo_on_ray_is_the_run_in_one_process_and_resumes_bit_for_bit(cluster, grpo, tmp_path):
    command = "train-async"  # in which a checkpoint holds the rollout that waits as well
    here = run(command, tmp_path / "here", grpo)
    on_ray = ("--ray-address", "local", "--update-weight-buffer-size", "10000")  # in several buckets
    save = ("--save", str(tmp_path / "save"), "--save-interval", "2")
    there = run(command, tmp_path / "there", grpo, *on_ray, *save)
    assert_same(here, there)
    shutil.rmtree(tmp_path / "save" / "iter_0000002")
    lines, weights = run(command, tmp_path / "rest", grpo, *on_ray, "--load", str(tmp_path / "save"))
    assert_same((here[0][-1:], here[1]), (lines, weights))
    timed = read_metrics(tmp_path / "there" / "metrics.jsonl")[0]
    assert timed["perf/hooks/reward/calls"] >= 6  # counted in the rollout worker
    assert timed["perf/hooks/loss/calls"] >= 1  # counted in the training rank


def test_grpo_with_images_on_ray_trains_the_weights_of_one_process_bit_for_bit(cluster, shown, tmp_path):
    flags = [
        *("--hf-checkpoint", str(shown), "--prompt-data", str(shown / "rows.jsonl"), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "image_hooks.sees_images"),
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "6"),
        *("--lr", "1e-3", "--num-rollout", "2"),
    ]
    lines, weights = run("train-async", tmp_path / "here", flags)
    other_lines, others = run("train-async", tmp_path / "there", flags, "--ray-address", "local")
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    for line, other in zip(lines, other_lines, strict=True):  # last digits of the engine's log-probs may differ
        assert line == pytest.approx(other, abs=1e-6)


def test_a_worker_with_other_plugins_refuses_to_start(cluster, sft, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Plugins, "fingerprint", lambda self: {"slime-core": "0.1.0", "slime-losses": "0.0.9"})
    assert main(["train", *sft, "--ray-address", "local", "--run-dir", str(tmp_path / "run")]) == 1
    told = capfd.readouterr().err
    assert "plugins differ from those of the driver" in told
    assert "slime-losses is 0.0.9 there and 0.1.0 here" in told


@pytest.mark.parametrize(
    ("option", "hook", "what"),
    [
        ("--rollout-data-postprocess-path", "refuse_rewards", "rewards"),
        ("--custom-convert-samples-to-train-data-path", "refuse_to_convert", "samples"),
    ],
)
def test_an_error_in_a_users_hook_keeps_its_type_text_and_frames(cluster, grpo, tmp_path, capfd, option, hook, what):
    words = ["train", *grpo, option, f"cluster_hooks.{hook}", "--ray-address", "local", "--colocate"]
    alone = ["--debug-rollout-only"] if what == "samples" else []
    assert main([*words, *alone, "--run-dir", str(tmp_path / "run")]) == 1
    told = capfd.readouterr().err
    assert f"slime train: OwnError: these 6 {what} are no good" in told
    assert f"chosen by {option}" in told
    assert f"in {hook}" in told
    assert "RayTaskError" not in told
    if what == "rewards":
        until = time.monotonic() + 20  # Ray sends what workers print behind what they return
        while "refusing 6 rewards" not in told and time.monotonic() < until:
            time.sleep(0.2)
            told += capfd.readouterr().err
        assert "refusing 6 rewards" in told, "a worker's warning does not reach the console"


def test_a_killed_rank_ends_a_run_that_does_not_wait_for_it(cluster, grpo, tmp_path, capfd):
    words = ["train", *grpo, "--custom-rm-path", "cluster_hooks.kill_the_trainer", "--ray-address", "local"]
    words += ["--rollout-batch-size", "1", "--save", str(tmp_path / "save"), "--save-interval", "1"]
    assert main([*words, "--rollout-data-postprocess-path", "cluster_hooks.tell_pid"]) == 1
    assert_said_who_was_killed(capfd.readouterr().err, 0, tmp_path / "save")


@pytest.mark.slow
def test_a_rank_killed_while_another_waits_for_it_ends_the_run_which_resumes_bit_for_bit(
    cluster, grpo, tmp_path, capfd
):
    grpo += ["--rollout-batch-size", "1", "--actor-num-gpus-per-node", "2", "--colocate", "--save-interval", "1"]
    grpo += ["--rollout-data-postprocess-path", "cluster_hooks.kill_this_rank"]
    grpo += ["--custom-reward-post-process-path", "cluster_hooks.tell_of_call"]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    (unbroken / "killed").touch()
    whole = run("train", tmp_path / "whole", grpo, "--save", str(unbroken))
    calls = (tmp_path / "whole" / "calls.txt").read_text().splitlines()
    assert len(calls) == len(whole[0]), "rewards are post-processed once for a rollout, and not by every rank"
    capfd.readouterr()
    started = time.monotonic()
    assert main(["train", *grpo, "--save", str(broken), "--run-dir", str(tmp_path / "first")]) == 1
    assert time.monotonic() - started < 60
    assert_said_who_was_killed(capfd.readouterr().err, 1, broken)
    lines, weights = run("train", tmp_path / "rest", grpo, "--save", str(broken), "--load", str(broken))
    assert_same((whole[0][-2:], whole[1]), (lines, weights))


def assert_said_who_was_killed(told: str, rank: int, save: Path) -> None:
    pid = re.search(rf"training rank {rank}: process (\d+) on", told)
    assert pid
    assert f"The training rank {rank} (process {pid[1]} on 127.0.0.1) has ended" in told
    assert f"start the same command again with --load {save}" in told
    assert not any(actor_is_alive(int(pid)) for pid in re.findall(r"process (\d+) on", told))


def actor_is_alive(pid: int) -> bool:
    """Ray ends processes soon, not at once."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


SGD = ("--optimizer", "sgd", "--lr", "0.1")  # Adam makes any difference in a tiny gradient as large as a step


def test_two_ranks_train_to_the_weights_of_one_and_resume_in_one_process(cluster, sft, tmp_path):
    here = run("train", tmp_path / "here", sft, *SGD)
    two = ("--actor-num-gpus-per-node", "2", "--save", str(tmp_path / "save"), "--save-interval", "2")
    there = run("train", tmp_path / "there", sft, *SGD, *two, "--async-save", "--save-total-limit", "9")
    assert_close(here, there)
    together, alone = kept_samples(tmp_path / "there"), kept_samples(tmp_path / "here")
    assert {name.partition("-")[0] for name in together} == {"0", "1", "2", "3"}
    for name in together.keys() & alone.keys():
        assert together[name] == pytest.approx(alone[name], abs=1e-3), (
            "each rank keeps those that it alone has computed"
        )
    assert main(["export", str(tmp_path / "save"), str(tmp_path / "exported")]) == 0
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in there[1].items())
    shutil.rmtree(tmp_path / "save" / "iter_0000003")
    rest = run("train", tmp_path / "rest", sft, *SGD, "--load", str(tmp_path / "save"))
    assert_close((here[0][-len(rest[0]) :], here[1]), rest)
    assert [line["rollout_id"] for line in rest[0]] == [2, 3, 3]


def test_parity_is_checked_in_the_ranks_that_the_run_would_have(cluster, sft, capfd):
    assert main(["check", *sft, "--actor-num-gpus-per-node", "2", "--parity", "--gradients"]) == 0
    told = capfd.readouterr().out
    pids = re.findall(r"training rank \d: process (\d+) on", told)
    assert len(set(pids)) == 2
    compared = {words[0]: words[1] for line in told.splitlines() if len(words := line.split()) > 1}
    assert [compared[name] for name in ("checkpoint", "weights", "log-probs", "gradients")] == ["ok"] * 4
    assert not any(actor_is_alive(int(pid)) for pid in pids)


def test_two_ranks_hand_weights_to_servers_in_the_engines_own_way(cluster, grpo, tmp_path):
    here = run("train", tmp_path / "here", grpo, *SGD)
    served = ("--rollout-engine", "cluster_hooks.ServedEngine", "--colocate", "--actor-num-gpus-per-node", "2")
    served += ("--balance-data", "--data-source-path", "cluster_hooks.ClosingSource")
    there = run("train", tmp_path / "there", grpo, *SGD, *served)
    assert_close(here, there)
    assert len(set((tmp_path / "there" / "servers").read_text().split())) == 2
    assert sorted(path.name for path in (tmp_path / "there").glob("closed-*")) == ["closed-0", "closed-1"]
    closing = (tmp_path / "there" / "sources").read_text().split()
    assert len(closing) == len(set(closing)) == 2, "the driver's and the rollout worker's, each once"


def assert_close(one: tuple[list[dict], dict], other: tuple[list[dict], dict]) -> None:
    """Two ranks add the same numbers in another order."""
    for here, there in zip(one[0], other[0], strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-5)
        assert all(abs(here[name] - there[name]) < 1e-5 for name in here if name.endswith("loss"))
    assert all((tensor - other[1][name]).abs().max() < 1e-5 for name, tensor in one[1].items())


@pytest.mark.parametrize(
    ("engine", "shared"), [("none", {}), ("worker", {}), ("servers", SHARED), ("elsewhere", SHARED)]
)
def test_ranks_have_the_settings_of_nccl_that_servers_have(monkeypatch, engine, shared):
    monkeypatch.delenv("NCCL_CUMEM_ENABLE", raising=False)
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    first = SimpleNamespace(where=SimpleNamespace(node="10.0.0.1", port=1))
    layout, placement = SimpleNamespace(ranks=2, ranks_per_node=2, engine=engine), SimpleNamespace(device="GPU")
    for environment in ray_runs._environments(layout, placement, [first]):
        assert {name: value for name, value in environment.items() if name.startswith("NCCL")} == shared
