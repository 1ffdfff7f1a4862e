"""Rollouts on disk: dumped, replayed, and samples converted by somebody's own function."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from slime_core.cli import main
from slime_core.errors import DataError, PluginError
from slime_core.rollout.debug_data import read_debug_data, write_debug_data
from slime_core.rollout.train_data import converted
from slime_core.rollout.worker import RolloutResult
from slime_core.sample import RolloutOutput, Sample, Status, check_rollout


def groups() -> list[list[Sample]]:
    return [
        [
            Sample(
                index=2 * g + i,
                group_index=g,
                tokens=[1, 2, 3 + i],
                response_length=1,
                reward=float(i),
                rollout_log_probs=[-0.25],
                weight_versions=[g],
                status=Status.COMPLETED,
                metadata={"start_rollout_id": g},
            )
            for i in range(2)
        ]
        for g in range(3)
    ]


def test_a_dumped_rollout_is_read_back_whole(tmp_path):
    output = RolloutOutput(groups(), {"rounds": 2.0})
    write_debug_data(tmp_path / "sub" / "3.jsonl", output)
    assert read_debug_data(tmp_path / "sub" / "3.jsonl") == output


def test_a_rollout_that_waits_for_training_survives_a_checkpoint():
    result = RolloutResult(RolloutOutput(groups(), {"rounds": 2.0}), {"offset": 4}, 1.5)
    assert RolloutResult.from_dict(json.loads(json.dumps(result.to_dict(), default=Sample.to_dict))) == result


def test_a_file_that_is_no_dump_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    for name in ("rows.jsonl", "none.jsonl"):
        with pytest.raises(DataError, match="Give the path that --save-debug-rollout-data wrote"):
            read_debug_data(tmp_path / name)


def test_converted_samples_get_the_given_columns_and_keep_the_rest():
    made = converted(
        RolloutOutput(groups(), {"rounds": 2.0}),
        {
            "rewards": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
            "loss_masks": [[0]] * 6,
            "truncated": [1, 0, 0, 0, 0, 0],
            "round_number": [0] * 6,
            "metadata": [None] * 6,
        },
    )
    assert [[s.reward for s in group] for group in made.groups] == [[9, 8], [7, 6], [5, 4]]
    assert {tuple(s.loss_mask) for s in made.samples} == {(0,)}
    assert [s.index for s in made.samples] == list(range(6))
    assert [s.status for s in made.samples] == [Status.TRUNCATED, *[Status.COMPLETED] * 5]
    assert all(s.final_reward == Sample.from_dict(s.to_dict()).final_reward == s.reward for s in made.samples)
    assert made.metrics == {"rounds": 2.0, "raw_reward": 0.5}


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_arrays_that_a_converter_returns_are_read_as_lists(make):
    data = {"tokens": [[1, 2, 3]] * 6, "loss_masks": [[0, 1]] * 6, "rollout_log_probs": [[-0.5, -1]] * 6}
    data = {name: [make(row) for row in rows] for name, rows in data.items()} | {"response_lengths": [2] * 6}
    before = [[sample.changed(weight_versions=[]) for sample in group] for group in groups()]
    made = converted(RolloutOutput(before), data).groups
    check_rollout(made, need_reward=True)
    sample = made[0][0]
    assert (sample.tokens, sample.loss_mask, sample.rollout_log_probs) == ([1, 2, 3], [0, 1], [-0.5, -1.0])


@pytest.mark.parametrize(
    ("metrics", "data", "raw"),
    [
        ({"raw_reward": 0.25}, {"rewards": [9.0] * 6}, 0.25),
        ({"raw_reward": 0.25}, {"rewards": [9.0] * 6, "raw_reward": [1.0, 3.0] * 3}, 2.0),
        ({}, {"rewards": [9.0] * 6, "raw_reward": [1.0, 3.0] * 3}, 2.0),
        ({"raw_reward": 0.25}, {"loss_masks": [[1]] * 6}, 0.25),
    ],
)
def test_what_answers_were_worth_is_logged_however_they_are_converted(metrics, data, raw):
    made = converted(RolloutOutput(groups(), metrics), data)
    assert made.metrics["raw_reward"] == raw
    assert {s.final_reward for s in made.samples} == ({9.0} if "rewards" in data else {None})


def test_pass_rates_are_of_what_a_converter_calls_raw_where_they_were_asked_for():
    given = {"rewards": [9.0] * 6, "raw_reward": [1.0, 3.0, 0.0, None, 1.0, 1.0]}
    asked = {"passrate/pass@1": 0.25, "rounds": 2.0}
    made = converted(RolloutOutput(groups(), asked), given)
    assert made.metrics == {"passrate/pass@1": 0.5, "rounds": 2.0, "raw_reward": 1.2}
    assert converted(RolloutOutput(groups(), {}), given).metrics == {"raw_reward": 1.2}


def test_converted_samples_of_an_unknown_column_are_refused():
    with pytest.raises(PluginError, match="'images', which training does not know"):
        converted(RolloutOutput(groups()), {"images": []})


def test_a_column_of_slime_that_training_has_no_use_for_says_what_it_is():
    with pytest.raises(
        PluginError, match="'teacher_log_probs', which training here has no use for \\(log-probs of a teacher\\)"
    ):
        converted(RolloutOutput(groups()), {"teacher_log_probs": [[-1.0]] * 6})


def answers() -> RolloutOutput:
    return RolloutOutput(
        [[Sample(index=n, group_index=n, tokens=[1, 2, 3], response_length=1, reward=1.0)] for n in range(4)]
    )


@pytest.mark.parametrize(
    ("first", "more", "said"),
    [
        ("0.arrow", [], ""),
        ("4.arrow", ["--start-rollout-id", "4", "--num-rollout", "5"], ""),
        ("0.arrow", ["--start-rollout-id", "4", "--num-rollout", "5"], "4.arrow cannot be read: "),
        ("none", [], "0.arrow cannot be read: "),
        ("none", ["--elsewhere"], ""),
        ("rows", [], "0.arrow cannot be read: "),
        ("folder", [], "0.arrow cannot be read: "),
    ],
)
def test_the_first_dump_is_looked_at_before_a_run(first, more, said, sft, tmp_path, capsys):
    if first == "rows":
        (tmp_path / "0.arrow").write_text('{"messages": []}\n')
    elif first == "folder":
        (tmp_path / "0.arrow").mkdir()
    elif first != "none":
        write_debug_data(tmp_path / first, answers())
    words = [*sft, "--load-debug-rollout-data", str(tmp_path / "{rollout_id}.arrow"), *more]
    status = main(["check", *words])
    told = capsys.readouterr().err
    assert status == (1 if said else 0), told
    assert (f"--load-debug-rollout-data: {tmp_path}/{said}" if said else "") in told


def test_a_dump_that_an_earlier_stage_writes_is_not_looked_for(sft_anywhere, tmp_path, capsys):
    keys = [word.removeprefix("--") for word in sft_anywhere[::2]]
    shared = dict(zip(keys, sft_anywhere[1::2], strict=True))
    stages = [{"save-debug-rollout-data": "{rollout_id}.arrow"}, {"load-debug-rollout-data": "{rollout_id}.arrow"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**shared, "stages": stages}))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**shared, "stages": stages[1:] + stages[1:]}))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 1
