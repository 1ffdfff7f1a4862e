"""What a rollout returns is checked at the boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(
    ("field", "left", "found"),
    [
        ("reward", True, 1.0),
        ("reward", np.bool_(False), 0.0),
        ("reward", np.float32(0.5), 0.5),
        ("reward", torch.tensor(2), 2),
        ("reward", torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (
            "reward",
            {"acc": True, "n": np.int64(3), "why": "short", "none": None},
            {"acc": 1.0, "n": 3, "why": "short", "none": None},
        ),
        ("loss_mask", np.array([1, 0]), [1, 0]),
        ("loss_mask", torch.tensor([True, False]), [1, 0]),
        ("loss_mask", [1.0, False], [1, 0]),
        ("loss_mask", (1, 0), [1, 0]),
        ("rollout_log_probs", torch.tensor([-0.5, -1.0]), [-0.5, -1.0]),
        ("rollout_log_probs", [np.float32(-0.5), 0], [-0.5, 0.0]),
        ("index", np.int64(3), 3),
        ("response_length", torch.tensor(2), 2),
        ("remove_sample", np.bool_(True), True),
        ("remove_sample", 1, True),
        ("status", "aborted", Status.ABORTED),
        ("weight_versions", None, []),
        ("images", (b"png",), [b"png"]),
    ],
)
def test_numbers_of_hooks_become_plain_numbers(field, left, found):
    sample = Sample(index=3)
    setattr(sample, field, left)
    sample.make_plain()
    assert getattr(sample, field) == found
    assert [type(value) for value in flat(getattr(sample, field))] == [type(value) for value in flat(found)]


def flat(value):
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("field", "left", "says"),
    [
        ("loss_mask", [1, None], r"loss_mask\[1\] is None, expected 0 or 1"),
        ("loss_mask", [1, 0.5], r"loss_mask\[1\] is 0.5"),
        ("loss_mask", torch.ones(1, 2), r"loss_mask\[0\] is \[1.0, 1.0\]"),
        ("loss_mask", 1, "loss_mask is 'int', expected a list"),
        ("rollout_log_probs", [None, -1.0], r"rollout_log_probs\[0\] is None, expected a number"),
        ("rollout_log_probs", ["-1"], r"rollout_log_probs\[0\] is '-1'"),
        ("reward", {1.0}, "reward is 'set'"),
        ("tokens", None, "tokens is None, expected a list of whole numbers"),
        ("weight_versions", "abc", "weight_versions is 'abc', expected a list"),
        ("rollout_log_probs", [-(10**400)], "rollout_log_probs cannot be kept"),
        ("response_length", 3.0, "response_length is 3.0, expected a whole number"),
        ("group_index", "3", "group_index is '3', expected a whole number or None"),
        ("remove_sample", "no", "remove_sample is 'no', expected True or False"),
        ("metadata", None, "metadata is None, expected an object"),
        ("response", None, "response is None, expected text"),
        ("images", None, "images is None, expected a list of bytes"),
        ("status", "done", "status is 'done', expected one of Sample.Status"),
    ],
)
def test_what_is_no_number_is_named_with_sample_and_place(field, left, says):
    sample = Sample(index=3)
    setattr(sample, field, left)
    with pytest.raises(SampleError, match=f"sample 3: {says}"):
        sample.make_plain()


@pytest.mark.parametrize("name", ["custom_rm_path", "generate_function_path"])
def test_no_stored_sample_says_what_is_imported(name: str, caplog: pytest.LogCaptureFixture) -> None:
    sample = Sample(index=4)
    setattr(sample, name, "somebodys.module.function")
    sample.judge = "mine"  # type: ignore[attr-defined]  # what a hook sets is kept
    stored = Sample.from_dict(sample.to_dict())
    assert getattr(stored, name) is None
    assert stored.judge == "mine"  # type: ignore[attr-defined]  # as above
    assert f"sample 4 is stored with {name} 'somebodys.module.function', which is not followed" in caplog.text
