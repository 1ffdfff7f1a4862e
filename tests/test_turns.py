"""Turns of the model and of tools become one response whose masks, log-probs and weight versions are as long as it."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from slime_core.errors import SampleError
from slime_core.sample import Sample, Status, check_rollout

STOP = {"finish_reason": {"type": "stop", "matched": 2}}


def meta(version: Any = None, reason: str = "stop", **more: Any) -> dict[str, Any]:
    known = {} if version is None else {"weight_version": version}
    return {"finish_reason": {"type": reason}, **known, **more}


@pytest.mark.parametrize("seed", range(20))
def test_turns_of_any_kind_give_a_response_that_keeps_every_rule(seed: int) -> None:
    draw = random.Random(seed)
    prompt = [7] * draw.randint(1, 4)
    sample = Sample(index=seed, prompt="p", tokens=list(prompt), reward=0.0)
    tokens: list[int] = []
    mask: list[int] = []
    log_probs: list[float] = []
    versions: list[int] = []
    told = 0
    for turn in range(draw.randint(1, 5)):
        own = [draw.randint(0, 99) for _ in range(draw.randint(0, 4))]
        trained = turn % 2 == 0
        if trained:
            told = turn if own else told
            given = [-draw.random() for _ in own]
            made = draw.choice([list, np.array, torch.tensor])
            sample.append_response_tokens(None, tokens=own, log_probs=made(given), meta_info=meta(turn), text="x")
        else:
            given = [0.0] * len(own)
            sample.append_response_tokens(tokens=np.array(own, dtype=int), trainable=False, text="tool")
        tokens += own
        mask += [int(trained)] * len(own)
        log_probs += given
        versions += [told] * len(own)
    assert sample.tokens == prompt + tokens
    assert sample.response_length == len(tokens) == sample.effective_response_length + mask.count(0)
    assert sample.trained_mask == mask
    assert sample.rollout_log_probs == pytest.approx(log_probs)
    own = [i for i, trained in enumerate(mask) if trained]
    assert [sample.weight_versions[i] for i in own] == [versions[i] for i in own]
    assert len(sample.weight_versions) == (len(tokens) if own else 0)
    if own:  # tool tokens have the version of the turn before; those before all turns, that of the first
        assert sample.weight_versions == [versions[own[0]]] * own[0] + versions[own[0] :]
    assert sample.status is Status.COMPLETED
    check_rollout([[sample]], need_reward=True)
    assert Sample.from_dict(sample.to_dict()) == sample


def test_many_turns_are_appended_to_the_same_lists_which_copies_and_hooks_do_not_see_change() -> None:
    prompt = [7, 7]
    sample = Sample(tokens=prompt)
    sample.append_response_tokens(tokens=[1], log_probs=[-1.0], meta_info=meta(1))
    lists = [id(vars(sample)[name]) for name in ("tokens", "loss_mask", "rollout_log_probs", "weight_versions")]
    sample.append_response_tokens(tokens=[2], log_probs=[-2.0], meta_info=meta(1))
    assert lists == [id(vars(sample)[name]) for name in ("tokens", "loss_mask", "rollout_log_probs", "weight_versions")]
    held, other = sample.tokens, sample.changed()
    sample.append_response_tokens(tokens=[3], log_probs=[-3.0], meta_info=meta(2))
    assert prompt == [7, 7]
    assert held == other.tokens == [7, 7, 1, 2]
    assert (other.rollout_log_probs, other.weight_versions) == ([-1.0, -2.0], [1, 1])
    assert (sample.tokens, sample.weight_versions) == ([7, 7, 1, 2, 3], [1, 1, 2])


def test_versions_of_single_tokens_are_taken_where_the_engine_names_them() -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens(
        tokens=[2, 3], log_probs=[-1, -1], meta_info=meta("4", weight_versions=[3, 4], reason="length")
    )
    sample.append_response_tokens(tokens=[9, 9], trainable=False)
    assert sample.weight_versions == [3, 4, 4, 4]
    assert sample.status is Status.TRUNCATED


def test_a_turn_of_unknown_weights_leaves_the_versions_of_the_response_unknown() -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens(tokens=[2], log_probs=[-1], meta_info=meta(1))
    sample.append_response_tokens(tokens=[3], log_probs=[-1], meta_info=meta())
    assert sample.weight_versions == []
    sample.append_response_tokens(tokens=[4], log_probs=[-1], meta_info=meta(2))
    assert sample.weight_versions == []


@pytest.mark.parametrize(
    ("versions", "mask", "spread"),
    [
        ([1, 2], [1, 1, 0, 1], [1, 1, 1, 2]),
        ([1, 2], [0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 2, 2]),
        (["5", "5", "5"], None, ["5"] * 4),
        ([5], None, [5] * 4),
        ([1, 2], [1, 1, 1, 1], [1, 2]),  # nobody knows which token is whose
        ([1, 2, 3, 3], None, [1, 2, 3, 3]),
        ([], [1, 1, 1, 1], []),
    ],
)
def test_one_version_for_each_turn_is_spread_over_its_tokens(versions: Any, mask: Any, spread: Any) -> None:
    length = len(mask) if mask else 4
    sample = Sample(tokens=[0] * (length + 1), response_length=length, loss_mask=mask, weight_versions=versions)
    sample.make_plain()
    assert sample.weight_versions == spread


@pytest.mark.parametrize(
    ("held", "given", "message"),
    [
        ({}, {"tokens": [1, 2], "log_probs": [-1.0]}, "2 tokens and 1 log-probs"),
        ({}, {"tokens": [1]}, "without their log-probs"),
        ({}, {"tokens": [1], "log_probs": [-1.0], "trainable": False}, "trainable=False"),
        ({"response_length": 1}, {"tokens": [1], "log_probs": [-1.0]}, "whose 1 response tokens have none"),
        (
            {"response_length": 1, "loss_mask": [], "rollout_log_probs": [-1.0]},
            {"tokens": [1], "log_probs": [-1.0]},
            "0 entries of loss_mask and 1 response tokens",
        ),
        ({}, {"tokens": [1], "log_probs": [-1.0], "meta_info": {"routed_experts": "AAA="}}, "routed_experts"),
        ({}, {"tokens": [1], "log_probs": [-1.0], "meta_info": {"top_p_token_ids": [1]}}, "top_p_token_ids"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_changes_nothing(held: Any, given: Any, message: str) -> None:
    sample = Sample(index=3, tokens=[5, 6], **held)
    before = copy.deepcopy(sample)
    with pytest.raises(SampleError, match=message) as caught:
        sample.append_response_tokens(**given)
    assert "sample 3" in str(caught.value)
    assert sample == before


def test_a_list_that_a_hook_holds_as_the_loss_mask_stays_the_loss_mask() -> None:
    mask: list[int] = []
    sample = Sample(tokens=[1], loss_mask=mask)
    sample.append_response_tokens(tokens=[2], log_probs=[-1.0], meta_info=STOP)
    assert sample.loss_mask is mask
    assert mask == [1]


def test_an_empty_turn_gives_log_probs_that_are_as_long_as_the_response() -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens(tokens=[], log_probs=[], meta_info=meta(reason="abort"))
    assert (sample.rollout_log_probs, sample.response_length, sample.status) == ([], 0, Status.ABORTED)


def test_the_status_stays_where_nothing_was_said_of_the_end_or_the_caller_wants_it_so() -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens(tokens=[2], log_probs=[-1.0], meta_info=STOP, update_terminal_info=False)
    sample.append_response_tokens(tokens=[2], trainable=False)
    assert sample.status is Status.PENDING


def test_the_reward_that_is_trained_on_is_that_of_the_key() -> None:
    assert Sample(reward=2).get_reward_value(SimpleNamespace(reward_key=None)) == 2.0
    assert Sample(reward={"a": 1.0, "b": 0.5}).get_reward_value(SimpleNamespace(reward_key="b")) == 0.5
    with pytest.raises(SampleError, match="--reward-key"):
        Sample(reward={"a": 1.0}).get_reward_value(SimpleNamespace(reward_key=None))


def test_what_hooks_set_besides_the_fields_is_stored_and_copied_with_the_sample() -> None:
    sample = Sample(index=1, tokens=[1, 2], response_length=1)
    sample.tool_calls, sample.scores = np.int64(3), (0.5, np.float32(1))  # type: ignore[attr-defined]  # as hooks do
    sample.make_plain()
    assert sample.further_attributes == {"tool_calls": 3, "scores": [0.5, 1.0]}
    for other in (sample.changed(label="x"), Sample.from_dict(sample.to_dict()), copy.deepcopy(sample)):
        assert other.further_attributes == sample.further_attributes
        assert other.tokens == [1, 2]
    sample.lock = {1, 2}  # type: ignore[attr-defined]
    with pytest.raises(SampleError, match="lock"):
        sample.make_plain()


def test_fields_that_slime_alone_has_are_none_and_setting_one_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_core.sample._told", set())
    seen: Any = Sample(index=1)
    assert (seen.multimodal_inputs, seen.session_id, seen.custom_rm_path) == (None, None, None)
    assert seen.further_attributes == {}
    for name in ("session_id", "rollout_top_p_token_ids", "teacher_log_probs", "teacher_log_probs"):
        sample: Any = Sample(index=2)
        setattr(sample, name, None if name.startswith("rollout") else [0.5])
        sample.make_plain()
        assert Sample.from_dict(sample.to_dict()).further_attributes == sample.further_attributes
    (record,) = caplog.records
    assert "'teacher_log_probs' on sample 2" in record.getMessage()


def test_a_sample_with_fields_alone_is_stored_without_further_attributes() -> None:
    assert "attributes" not in Sample(index=1).to_dict()
