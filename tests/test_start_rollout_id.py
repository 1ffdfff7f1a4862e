"""`--start-rollout-id` says where a run begins to count; it never mixes checkpoints that count differently."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run.resume import find_beginning
from slime_core.run.saving import Saving
from slime_core.run.tracking import read_metrics


@pytest.fixture
def start(sft: list[str], tmp_path: Path) -> Any:
    """`start(folder, *words)`: the status of a run of four rollouts of two conversations."""

    def run(folder: str, *words: str, rollouts: int = 4) -> int:
        own = [
            "--num-rollout",
            str(rollouts),
            "--run-dir",
            str(tmp_path / folder),
            "--save-hf",
            str(tmp_path / folder / "hf"),
        ]
        return main(["train", *sft, *own, *words])

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def test_a_new_run_counts_from_there(start: Any, tmp_path: Path) -> None:
    assert (
        start("late", "--start-rollout-id", "2", "--save", str(tmp_path / "saved"), "--lr-decay-style", "constant") == 0
    )
    assert [line["rollout_id"] for line in read_metrics(tmp_path / "late" / "metrics.jsonl")] == [2, 3]
    assert [path.name for path in (tmp_path / "saved").glob("iter_*")] == ["iter_0000003"]
    assert start("early", "--lr-decay-style", "constant", rollouts=2) == 0  # the same data and steps
    early = weights(tmp_path / "early")
    assert all(torch.equal(tensor, early[name]) for name, tensor in weights(tmp_path / "late").items())


def test_a_run_that_goes_on_counts_on_or_anew_in_a_folder_of_its_own(
    start: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = str(tmp_path / "saved")
    assert start("first", "--save", saved, "--load", saved, rollouts=2) == 0
    assert start("on", "--save", saved, "--load", saved, "--start-rollout-id", "2", "--on-resume-change", "warn") == 0
    assert [line["rollout_id"] for line in read_metrics(tmp_path / "on" / "metrics.jsonl")] == [2, 3]
    assert start("anew", "--save", saved, "--load", saved, "--start-rollout-id", "0") == 1
    assert "goes on with rollout 4, and the new checkpoints would stand among those" in capsys.readouterr().err
    (tmp_path / "anew" / "metrics.jsonl").write_text('{"rollout_id": -1}\n')  # of an attempt that was killed
    own = ("--save", str(tmp_path / "own"), "--on-resume-change", "warn")
    assert start("anew", *own, "--load", saved, "--start-rollout-id", "0") == 0
    lines = read_metrics(tmp_path / "anew" / "metrics.jsonl")
    assert [line["rollout_id"] for line in lines] == [0, 1, 2, 3]
    first = read_metrics(tmp_path / "first" / "metrics.jsonl")
    assert [line["train/num_tokens"] for line in lines[:2]] == [
        line["train/num_tokens"] for line in first
    ]  # the same rows
    assert lines[0]["train/loss"] < first[0]["train/loss"]  # but a model that has seen them


def test_versions_of_another_count_are_forgotten(tmp_path: Path) -> None:
    state = {
        "rollout_id": 3,
        "data_source": {"offset": 8},
        "prefetched": {},
        "prefetched_version": 2,
        "engine_version": 2,
    }
    state |= {"evaluation_due": True, "early_stopping": {}, "arguments": {"lr": 1.0}, "data": {}, "plugins": {}}
    with Saving(tmp_path, 3) as saving:
        checkpoint = saving.finish(state)

    def found(first: int | None) -> Any:
        args = {"load": str(tmp_path), "ckpt_step": None, "save": None, "num_rollout": 0}
        args |= {"start_rollout_id": first, "eval_prompt_data": None}
        names = SimpleNamespace(result_arguments=dict, fingerprint=dict)
        plan = SimpleNamespace(args=SimpleNamespace(**args), resolved=names, data_source=names, plugins=names)
        return find_beginning(plan)  # type: ignore[arg-type]  # what it reads of a plan

    assert found(None) == found(4)
    begin = found(4)
    assert (begin.previous, begin.start, begin.state, begin.anew) == (checkpoint, 4, state, False)
    begin = found(1)
    assert (begin.start, begin.begun_with, begin.anew) == (1, checkpoint, True)
    known = {name for name, value in begin.state.items() if value}
    assert known == {"rollout_id", "arguments", "begun_with"}  # `data` and `plugins` are empty


def test_a_number_that_leaves_nothing_to_do_is_refused(
    start: Any, sft: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("none", "--start-rollout-id", "4") == 2
    assert "--start-rollout-id 4 leaves nothing to do of --num-rollout 4" in capsys.readouterr().err
    place = sft.index("--num-rollout")
    epochs = [*sft[:place], *sft[place + 2 :], "--num-epoch", "1", "--start-rollout-id", "5"]
    assert main(["check", *epochs]) == 2
    assert "--start-rollout-id 5 leaves nothing to do of the 5 rollouts" in capsys.readouterr().err
