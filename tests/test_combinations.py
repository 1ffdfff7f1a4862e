"""Options that meet in no other test: a few combinations in every test run, resumed from each checkpoint; `python -m benchmarks.combinations`
tries hundreds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import combinations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("combinations")
    combinations.prepare(folder)
    return folder


@pytest.mark.parametrize("seed", [1, 4])
def test_a_combination_of_options_resumes_bit_for_bit(folder: Path, seed: int) -> None:
    assert combinations.attempt(*combinations.combination(seed, folder), folder) == "same"


def test_what_depends_on_more_than_the_run_is_found_and_traced_to_its_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = itertools.count()

    def other_every_time(args: object, sample: combinations.Sample) -> combinations.Sample:
        sample.metadata = {**sample.metadata, "rm_type": "none"}
        sample.reward = math.sin(next(calls))
        return sample

    monkeypatch.setattr(combinations, "ROLLOUTS", 2)
    command, options = combinations.combination(1, folder)
    hook = ["--rollout-sample-hook-path", "benchmarks.combinations.look"]
    options = options[:2]
    monkeypatch.setattr(combinations, "look", other_every_time)
    monkeypatch.setattr(combinations, "combination", lambda seed, folder: (command, [*options, ["--seed", "1"], hook]))
    assert combinations.search(iter([0]), folder, math.inf) == Counter({"fault": 1})
    said = capsys.readouterr().out
    assert "FAULT of seed 0: resumed from iter_0000000: metrics" in said
    assert " ".join(hook) in said
    assert "--seed 1" not in said
