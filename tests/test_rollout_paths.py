"""Paths with the number of a rollout in them: what `str.format` makes of them, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slime_core.arguments.rollout_paths import (
    as_template,
    fillable,
    has_rollout,
    path_of_rollout,
    paths_of_rollouts,
    rollouts_there,
)
from slime_core.cli import main

OPTIONS = ("--save-hf", "--save-debug-rollout-data", "--save-debug-train-data", "--load-debug-rollout-data")


@pytest.mark.parametrize(
    ("template", "third", "own"),
    [
        ("a/b", "a/b", False),
        ("a/{rollout_id}", "a/3", True),
        ("{rollout_id}/hf", "3/hf", True),
        ("hf_{rollout_id:05d}", "hf_00003", True),
        ("{rollout_id}_{rank}.arrow", "3_0.arrow", True),
        ("{{rollout_id}}", "{rollout_id}", False),
        ("[a]*?/{rollout_id}/{rollout_id}", "[a]*?/3/3", True),
    ],
)
def test_what_is_written_is_found(template: str, third: str, own: bool, tmp_path: Path) -> None:
    whole = f"{as_template(str(tmp_path))}/{fillable(template)}"
    assert path_of_rollout(whole, 3) == tmp_path / third
    assert has_rollout(whole) is own
    (tmp_path / third).mkdir(parents=True)
    (tmp_path / "another").mkdir()
    at = next((n for n, part in enumerate(Path(template).parts) if has_rollout(part)), 0)
    assert paths_of_rollouts(whole) == [tmp_path / third]
    assert rollouts_there(whole) == [(3, tmp_path / Path(*Path(third).parts[: at + 1]))] * own


@pytest.mark.parametrize(
    "path",
    [
        "{step}",
        "{",
        "a}",
        "{0}",
        "{rollout_id:q}",
        "{rollout_id.name}",
        "{rollout_id[0]}",
        "{rollout_id!s:0>5}",
        "{rollout_id.real}",
    ],
)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_cannot_be_filled_in_is_refused_at_the_start(
    option: str, path: str, sft: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *sft, option, path]) == 2
    told = capsys.readouterr().err
    assert f"{option}: given {path!r} (command line). The path {path!r} cannot be filled in (" in told
    assert "{rollout_id} is the number of the rollout" in told


def test_braces_of_the_current_folder_and_of_the_folder_of_details_belong_to_their_names(
    sft: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "{x}").mkdir()
    monkeypatch.chdir(tmp_path / "{x}")
    words = ["--num-rollout", "1", "--save-hf", "hf-{rollout_id}", "--dump-details", "{details}"]
    assert main(["train", *sft, *words]) == 0
    assert os.path.isfile("hf-0/config.json")
    assert os.path.isfile("{details}/rollout_data/0.arrow")
