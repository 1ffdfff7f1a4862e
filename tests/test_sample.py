"""What a rollout returns is checked at the boundary."""

from __future__ import annotations

import math

import pytest

from slime_core.errors import SampleError
from slime_core.sample import Sample, Status, check_rollout


def good(**changes) -> Sample:
    fields = {"index": 7, "tokens": [1, 2, 3, 4], "response_length": 2, "loss_mask": [1, 0], "reward": 0.0}
    return Sample(**{**fields, "metadata": {"slime": {"source": "rows.jsonl:3"}}, **changes})


def test_a_good_sample_passes():
    check_rollout([[good()], [good(loss_mask=None, rollout_log_probs=[-0.5, 0.0], weight_versions=[1, 1])]], True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_length": 5}, "response_length is 5, but there are 4 tokens"),
        ({"response_length": -1}, "must lie between 0"),
        ({"response_length": 4, "loss_mask": [1, 1, 1, 1]}, "nothing precedes it"),
        ({"loss_mask": [1]}, "loss_mask has 1 entries, but response_length is 2"),
        ({"loss_mask": []}, "loss_mask has 0 entries, but response_length is 2"),
        ({"loss_mask": [], "response_length": 4}, "loss_mask has 0 entries, but response_length is 4"),
        ({"loss_mask": [1, 2]}, "only 0 and 1"),
        ({"rollout_log_probs": [-1.0]}, "rollout_log_probs has 1 entries"),
        ({"rollout_log_probs": [-1.0, math.nan]}, "finite"),
        ({"rollout_log_probs": [-1.0, 0.5]}, "not above 0"),
        ({"weight_versions": [1]}, "weight_versions has 1 entries"),
        ({"reward": None}, "has no reward"),
        ({"reward": math.inf}, "rewards must be finite"),
    ],
)
def test_a_broken_rule_is_named_with_sample_and_source(changes, message):
    with pytest.raises(SampleError) as error:
        check_rollout([[good(**changes)]], need_reward=True)
    assert message in str(error.value)
    assert "sample 7 (rows.jsonl:3)" in str(error.value)


def test_an_aborted_sample_needs_no_reward():
    check_rollout([[good(reward=None, status=Status.ABORTED)]], need_reward=True)


def test_a_sample_survives_storage():
    sample = good(status=Status.TRUNCATED, weight_versions=[1, 2], prompt=[{"role": "user", "content": "é"}])
    assert Sample.from_dict(sample.to_dict()) == sample
    with pytest.raises(SampleError, match="colour"):
        Sample.from_dict({**sample.to_dict(), "colour": 1})


def test_status_reads_as_in_slime():
    assert Sample.Status.ABORTED is Status.ABORTED
