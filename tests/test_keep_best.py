"""`--early-stopping-keep best`: what a run exports and names at its end are the weights of its best evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run.tracking import read_metrics


@pytest.fixture
def words(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> list[str]:
    """A run whose loss on other rows falls, and rises again: it trains on a single one."""
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", f"{chat_rows}@[0:1]", "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--disable-compute-advantages-and-returns", "--rollout-batch-size", "1", "--num-rollout", "30"),
        *("--eval-prompt-data", "held", f"{chat_rows}@[8:12]", "--eval-interval", "1", "--skip-eval-before-train"),
        *("--early-stopping-patience", "2", "--early-stopping-keep", "best", "--lr-decay-style", "constant"),
        *("--lr", "0.3", "--save", str(tmp_path / "save"), "--save-total-limit", "1"),
        *("--save-hf", str(tmp_path / "hf"), "--run-dir", str(tmp_path / "run")),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def losses(folder: Path) -> dict[int, float]:
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["rollout_id"]: line["eval/held/loss"] for line in lines if "eval/held/loss" in line}


def test_the_weights_of_the_best_evaluation_are_exported_and_their_checkpoint_is_named_and_stays(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 0
    found, save = losses(tmp_path / "run"), tmp_path / "save"
    best, last = min(found, key=lambda rollout: found[rollout]), max(found)
    assert best == last - 2
    assert (save / "best_checkpointed_iteration.txt").read_text() == f"{best}\n"
    assert sorted(path.name for path in save.glob("iter_*")) == [f"iter_{n:07d}" for n in (best, last)]
    told = capfd.readouterr().err
    assert f"the best loss, {found[best]:.4f}, was that after rollout {best + 1}" in told
    assert f"best checkpoint: {save / f'iter_{best:07d}'}" in told
    other = tmp_path / "other"
    elsewhere = ["--save", str(other), "--save-hf", str(other / "hf"), "--run-dir", str(other)]
    assert main(["train", *words, *elsewhere, "--num-rollout", str(best + 1)]) == 0
    assert_equal(weights(tmp_path / "hf"), weights(other / "hf"))
    # A run that was killed before the export makes it, also where the checkpoints are to be written elsewhere.
    # What is left there of another export does not win over it.
    single = tmp_path / "hf" / "model.safetensors"
    stale = [tmp_path / "hf" / name for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json")]
    stale[0].write_bytes(single.read_bytes())
    named = dict.fromkeys(load_file(single), stale[0].name)
    stale[1].write_text(json.dumps({"metadata": {}, "weight_map": named}))
    for folder in ("adapter", "quantised"):
        stale.append(tmp_path / "hf" / folder)
        stale[-1].mkdir()
    (tmp_path / "hf" / "README.md").write_text("of the user")
    single.unlink()
    moved = ["--load", str(save), "--save", str(tmp_path / "moved"), "--run-dir", str(tmp_path / "moved")]
    assert main(["train", *words, *moved]) == 0
    assert_equal(weights(tmp_path / "hf"), weights(other / "hf"))
    assert not any(path.exists() for path in stale)
    assert (tmp_path / "hf" / "README.md").read_text() == "of the user"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".hf.")]
    assert (tmp_path / "moved" / f"iter_{best:07d}" / "state.json").exists()
    # And one whose best checkpoint is gone says so before it loads anything.
    shutil.rmtree(save / f"iter_{best:07d}")
    capfd.readouterr()
    assert main(["train", *words, "--load", str(save)]) == 1
    assert f"its checkpoint {save / f'iter_{best:07d}'} is gone" in capfd.readouterr().err


def test_where_training_only_makes_it_worse_the_weights_before_it_are_exported(
    words: list[str], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    highest = ["--early-stopping-metric=-eval/held/loss", "--no-skip-eval-before-train", "--lr", "0.01"]
    assert main(["train", *words, *highest]) == 0
    assert list(losses(tmp_path / "run")) == [-1, 0, 1]
    assert_equal(weights(tmp_path / "hf"), weights(tiny_model))
    assert "was that before training" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "save").glob("iter_*")] == ["iter_0000001"]
    assert not (tmp_path / "save" / "best_checkpointed_iteration.txt").exists()


def test_the_weights_before_a_training_that_counts_anew_are_those_of_its_checkpoint(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    of_first = ["--num-rollout", "1", "--early-stopping-keep", "last", "--save", str(first), "--save-hf", f"{first}/hf"]
    assert main(["train", *words, *of_first, "--lr", "0.01", "--run-dir", str(first)]) == 0
    worse = ["--early-stopping-metric=-eval/held/loss", "--no-skip-eval-before-train", "--lr", "0.01"]
    anew = [*words, *worse, "--on-resume-change", "warn"]
    assert main(["train", *anew, "--load", str(first), "--start-rollout-id", "0"]) == 0
    assert_equal(weights(tmp_path / "hf"), weights(first / "hf"))
    shutil.rmtree(tmp_path / "hf")
    again = ["train", *anew, "--load", str(tmp_path / "save")]
    assert main(again) == 0
    assert_equal(weights(tmp_path / "hf"), weights(first / "hf"))
    shutil.rmtree(first)
    capfd.readouterr()
    assert main(again) == 1
    assert f"the checkpoint that the run began with, {first / 'iter_0000000'}, is gone" in capfd.readouterr().err


def test_it_needs_a_folder_for_the_checkpoint(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    position = words.index("--save")
    assert main(["check", *words[:position], *words[position + 2 :]]) == 2
    assert "--early-stopping-keep best keeps the checkpoint of the best evaluation" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--lora-rank", "4"), id="lora"),
        pytest.param(
            ("--train-backend", "megatron"),
            id="megatron",
            marks=[  # of torch and megatron-core, about their own calls
                pytest.mark.filterwarnings("ignore::DeprecationWarning"),
                pytest.mark.filterwarnings("ignore::FutureWarning"),
            ],
        ),
        pytest.param(("--async-save", "--ray-address", "local", "--actor-num-gpus-per-node", "2"), id="two-ranks"),
    ],
)
def test_what_is_exported_is_what_the_best_checkpoint_holds(
    words: list[str], more: tuple[str, ...], tmp_path: Path, cluster: object
) -> None:
    assert main(["train", *words, *more]) == 0
    found = losses(tmp_path / "run")
    best = min(found, key=lambda rollout: found[rollout])
    assert best < max(found)
    checkpoint = tmp_path / "save" / f"iter_{best:07d}"
    again = ["--num-rollout", "0", "--load", str(checkpoint), "--save-hf", str(tmp_path / "again")]
    kept = more[:2] if more[0] != "--async-save" else ()
    last = [*("--early-stopping-keep", "last", "--run-dir", str(tmp_path / "again")), *again]
    position = words.index("--save")
    assert main(["train", *words[:position], *words[position + 2 :], *kept, *last]) == 0
    assert_equal(weights(tmp_path / "hf"), weights(tmp_path / "again"))
