"""Partial rollouts: what was generated is kept and continued, and no token is lost or counted twice."""

from __future__ import annotations

import random
from typing import Any

import pytest
import rollout_cases
from hypothesis import given
from hypothesis import strategies as st
from rollout_cases import END, ScriptedEngine, rollout

from slime_core.data import GlobalDataSource
from slime_core.sample import Group, RolloutOutput, Sample, Status
from slime_rollout_sglang.partial import fresh, mask_first, put_back, resumable, stopped

PARTIAL = {"partial_rollout": True, "over_sampling_batch_size": 8}


def slow_later(prompt: list[int], params: dict[str, Any]) -> list[int]:
    """Later prompts have longer responses, the two samples of a group differ by eight tokens."""
    source = random.Random(params["seed"])
    length = 10 * (prompt[2] - 5) - (len(prompt) - 3) + 4 * source.randrange(3)
    return [source.randrange(10, 40) for _ in range(max(1, length))] + [END]


def response(sample: Sample) -> list[int]:
    return sample.tokens[len(sample.tokens) - sample.response_length :]


def two_rollouts(args: Any, plugins: Any) -> tuple[list[Group], RolloutOutput, ScriptedEngine]:
    """What the first rollout left in the buffer, under weights 1, and the second one, under weights 2."""
    source = GlobalDataSource(args)
    rollout(args, plugins, ScriptedEngine(slow_later, version=1), source, rollout_id=1)
    left = [[Sample.from_dict(s.to_dict()) for s in group] for group in source.buffer]
    engine = ScriptedEngine(slow_later, version=2)
    return left, rollout(args, plugins, engine, source, rollout_id=2), engine


def test_aborted_samples_wait_in_the_buffer_with_all_that_was_generated(arguments, plugins) -> None:
    args = arguments(**PARTIAL)
    source = GlobalDataSource(args)
    engine = ScriptedEngine(slow_later)
    rollout(args, plugins, engine, source, rollout_id=4)
    assert [group[0].group_index for group in source.buffer] == [3, 4, 5, 6, 7]
    for sample in (s for group in source.buffer for s in group):
        r = sample.response_length
        assert r > 0
        assert sample.status in (Status.ABORTED, Status.COMPLETED)
        assert sample.rollout_log_probs == [-0.5] * r
        assert sample.weight_versions == [1] * r
        assert sample.metadata["start_rollout_id"] == 4
        assert sample.response.startswith("w")
    assert any(s.status is Status.ABORTED for group in source.buffer for s in group)


def test_the_next_rollout_continues_with_the_old_tokens_log_probs_and_versions(arguments, plugins) -> None:
    left, second, engine = two_rollouts(arguments(**PARTIAL), plugins)
    before = {s.index: s for group in left for s in group}
    continued = [s for s in second.samples if before.get(s.index, s).status is Status.ABORTED]
    assert continued
    for sample in continued:
        old = before[sample.index]
        n = len(old.tokens)
        assert sample.tokens[:n] == old.tokens
        assert len(sample.tokens) > n
        assert sample.weight_versions == [1] * old.response_length + [2] * (
            sample.response_length - old.response_length
        )
        assert len(sample.rollout_log_probs) == sample.response_length
        assert sample.metadata["start_rollout_id"] == 1
        assert sample.response == " ".join(f"w{t}" for t in response(sample) if t != END)
        (params,) = [p for prompt, p, _ in engine.requests if prompt == old.tokens]
        assert params["max_new_tokens"] == 1024 - old.response_length
    assert second.metrics["staleness/max"] == 1
    assert second.metrics["sampling/samples_continued"] > 0


@pytest.mark.parametrize("generator", [None, "rollout_cases.of_slimes_shape"])
def test_a_continued_response_may_become_as_long_as_one_that_was_not_stopped(arguments, plugins, generator) -> None:
    def without_end(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [20] * (100 if prompt[2] < 9 else 1000)

    args = arguments(rollout_max_response_len=400, custom_generate_function_path=generator, **PARTIAL)
    left = GlobalDataSource(args)
    rollout(args, plugins, ScriptedEngine(without_end), left)
    begun = {s.index: s.response_length for group in left.buffer for s in group if s.status is Status.ABORTED}
    second = rollout(args, plugins, ScriptedEngine(without_end), left, rollout_id=1)
    continued = [s for s in second.samples if s.index in begun]
    assert all(90 < begun[s.index] < 200 for s in continued)
    assert [(s.response_length, s.status) for s in continued] == [(400, Status.TRUNCATED)] * 6


def test_a_continued_sample_draws_other_random_numbers_than_at_first(arguments, plugins) -> None:
    args = arguments(**PARTIAL)
    source = GlobalDataSource(args)
    engines = [ScriptedEngine(slow_later), ScriptedEngine(slow_later)]
    for rollout_id, engine in enumerate(engines):
        rollout(args, plugins, engine, source, rollout_id)
    first, second = ({tuple(prompt[:3]): p["seed"] for prompt, p, _ in e.requests} for e in engines)
    shared = set(first) & set(second)
    assert shared
    assert all(first[prompt] != second[prompt] for prompt in shared)


def test_finished_samples_of_an_unfinished_group_are_neither_generated_nor_scored_again(arguments, plugins) -> None:
    def one_fast_one_slow(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [20] * (3 if params["seed"] % 2 else 400) + [END]

    args = arguments(n_samples_per_prompt=4, **PARTIAL)
    source = GlobalDataSource(args)
    rollout(args, plugins, ScriptedEngine(one_fast_one_slow), source)
    finished = {s.index: s for group in source.buffer for s in group if s.status is Status.COMPLETED}
    assert finished
    assert all(s.reward is not None for s in finished.values())
    rollout_cases.state.answers = {n: [5.0] for n in range(40)}  # what a second scoring would give
    engine = ScriptedEngine(one_fast_one_slow)
    again = {s.index: s for s in rollout(args, plugins, engine, source, 1).samples}
    reused = set(finished) & set(again)
    assert reused
    for index in reused:
        assert again[index].tokens == finished[index].tokens
        assert again[index].reward == finished[index].reward != 5.0
    assert not [prompt for prompt, _, _ in engine.requests if END in prompt]


def test_surplus_groups_that_were_finished_return_finished_and_are_used_without_generation(arguments, plugins) -> None:
    def all_the_same(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [20, 21, END]

    args = arguments(partial_rollout=True, over_sampling_batch_size=6)
    source = GlobalDataSource(args)
    rollout(args, plugins, ScriptedEngine(all_the_same), source)
    assert [s.status for group in source.buffer for s in group] == [Status.COMPLETED] * 6
    engine = ScriptedEngine(all_the_same)
    args = args.model_copy(update={"over_sampling_batch_size": None})
    second = rollout(args, plugins, engine, source, 1)
    assert engine.requests == []
    assert [group[0].group_index for group in second.groups] == [3, 4, 5]
    assert second.metrics["sampling/samples_reused"] == 6


def test_tokens_of_earlier_rollouts_can_be_masked(arguments, plugins) -> None:
    args = arguments(mask_offpolicy_in_partial_rollout=True, **PARTIAL)
    left, second, _ = two_rollouts(args, plugins)
    old = {s.index: s.response_length for group in left for s in group}
    assert any(old.get(s.index) for s in second.samples)
    for sample in second.samples:
        n = old.get(sample.index, 0)
        assert sample.trained_mask == [0] * n + [1] * (sample.response_length - n)
        assert all(v == 2 for v, m in zip(sample.weight_versions, sample.trained_mask, strict=True) if m)
    left, unmasked, _ = two_rollouts(arguments(**PARTIAL), plugins)
    assert all(all(s.trained_mask) for s in unmasked.samples)


def test_with_masking_a_finished_surplus_group_starts_afresh_since_it_would_train_nothing(arguments, plugins) -> None:
    def all_the_same(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [20, 21, END]

    args = arguments(partial_rollout=True, mask_offpolicy_in_partial_rollout=True, over_sampling_batch_size=6)
    source = GlobalDataSource(args)
    output = rollout(args, plugins, ScriptedEngine(all_the_same), source)
    assert all(s.response_length == 0 for group in source.buffer for s in group)
    assert output.metrics["aborted_tokens_discarded"] == 18


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("generator", [None, "rollout_cases.two_turns"])
@pytest.mark.parametrize("order", ["finished", "prompt"])
def test_every_token_that_the_engine_generates_is_returned_put_back_or_counted_as_discarded(
    arguments, plugins, partial, generator, order
) -> None:
    rollout_cases.state.answers = {n: [1.0] for n in range(0, 80, 3)}
    rollout_cases.state.answers[4] = RuntimeError("no reward for this one")
    args = arguments(
        over_sampling_batch_size=7,
        partial_rollout=partial,
        dynamic_sampling_filter_path="check_reward_nonzero_std",
        dynamic_sampling_order=order,
        custom_generate_function_path=generator if not partial else None,
    )
    source = GlobalDataSource(args)
    doomed_lost = 0
    for rollout_id in range(8):
        engine = ScriptedEngine(slow_later)
        waiting = buffered(source)
        doomed = [g[0].group_index for g in source.buffer if all(s.status is Status.ABORTED for s in g)]
        for group_index in doomed:
            rollout_cases.state.answers[group_index] = RuntimeError("lost after being continued")
        output = rollout(args, plugins, engine, source, rollout_id)
        m = output.metrics
        doomed_lost += len(doomed) * int(m.get("sampling/groups_lost_reward", 0))
        assert m["generated_tokens"] == engine.handed_out
        assert m["returned_tokens"] == sum(s.response_length for s in output.samples)
        assert buffered(source) == waiting - m["buffered_tokens_taken"] + m["buffered_tokens_put_back"]
        assert (
            m["generated_tokens"] + m["buffered_tokens_taken"] + m["inserted_tokens"]
            == m["returned_tokens"] + m["buffered_tokens_put_back"] + m["discarded_tokens"]
        )
        assert (m["inserted_tokens"] > 0) == (args.custom_generate_function_path is not None)
        assert m["discarded_tokens"] >= m["aborted_tokens_discarded"]
    assert (doomed_lost > 0) == partial  # which happened at least once


def buffered(source: GlobalDataSource) -> int:
    return sum(s.response_length for group in source.buffer for s in group)


def test_a_run_that_is_stopped_and_resumed_continues_as_the_unbroken_one(arguments, plugins) -> None:
    args = arguments(**PARTIAL)
    unbroken, resumed = GlobalDataSource(args), GlobalDataSource(args)
    rollout(args, plugins, ScriptedEngine(slow_later), unbroken)
    resumed.load_state_dict(unbroken.state_dict())
    for rollout_id in (1, 2):
        outputs = [rollout(args, plugins, ScriptedEngine(slow_later), s, rollout_id) for s in (unbroken, resumed)]
        assert [s.to_dict() for s in outputs[0].samples] == [s.to_dict() for s in outputs[1].samples]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    r = draw(st.integers(0, 5))
    status = draw(st.sampled_from([Status.PENDING, Status.ABORTED, *([Status.COMPLETED] if r else [])]))
    sample = Sample(index=1, prompt="p", tokens=list(range(3 + r)), response_length=r, status=status, label="l")
    sample.rollout_log_probs, sample.weight_versions = [-1.0] * r, [1] * r
    return sample


@given(st.lists(samples(), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_a_group_put_back_has_its_prompts_whole_and_is_as_long_as_before(given, keep, mask) -> None:
    back = put_back([fresh(s) for s in given], [[s] for s in given], 3, keep, mask)
    assert len(back) == len(given)
    for old, new in zip(given, back, strict=True):
        assert new.tokens[: len(new.tokens) - new.response_length] == [0, 1, 2]
        assert new.response_length in (0, old.response_length)
        assert (new.prompt, new.label, new.index) == ("p", "l", 1)
        assert keep or new.response_length == 0
        assert ("start_rollout_id" in new.metadata) == (new.response_length > 0)


def test_masking_keeps_what_was_masked_already() -> None:
    sample = Sample(tokens=[0] * 6, response_length=5, loss_mask=[1, 1, 1, 0, 1])
    assert mask_first(sample, 2).loss_mask == [0, 0, 1, 0, 1]


def test_a_sample_that_is_aborted_twice_remembers_its_first_rollout_and_both_continuations() -> None:
    sample = Sample(tokens=[1, 2, 3], response_length=2, status=Status.ABORTED, metadata={"slime": {"source": "f:1"}})
    once = resumable(sample, 4)
    assert resumable(once, 5).metadata == {"slime": {"source": "f:1"}, "start_rollout_id": 4, "times_continued": 2}
    assert fresh(resumable(once, 5)).metadata == {"slime": {"source": "f:1"}}
    assert sample.metadata == {"slime": {"source": "f:1"}}


def test_a_prompt_that_starts_afresh_keeps_all_that_the_data_source_gave() -> None:
    given = Sample(index=3, group_index=1, prompt="p", images=[b"x"], tokens=[4, 5], label="l", metadata={"a": 1})
    given.note(source="rows.jsonl:2", asked=[{"role": "user", "content": "p"}])
    given.rollout_id, given.difficulty = 70, 3
    response = {"tokens": [4, 5, 6], "response": "r", "response_length": 1, "status": Status.ABORTED, "reward": 1.0}
    columns = {"rollout_log_probs": [-1.0], "loss_mask": [1], "weight_versions": [2]}
    begun = given.changed(**response, **columns, remove_sample=True)
    segments = [begun, begun.changed(status=Status.COMPLETED)]
    for sample in (given, begun, resumable(begun, 4), stopped(given, segments, 4)):
        assert fresh(sample).to_dict() == given.to_dict()  # which has the attributes, too


@pytest.mark.parametrize("keep", [False, True])
def test_a_group_that_was_not_begun_goes_back_as_it_came(keep: bool) -> None:
    given = Sample(index=3, prompt="p", tokens=[4, 5], reward=0.5, metadata={"a": 1})
    given.difficulty = 3
    (back,) = put_back([given], [[]], 5, keep, mask_earlier=False)
    assert back.to_dict() == given.to_dict()


class Marking(GlobalDataSource):
    """Sets an attribute of samples when they come from the data, and not when they come from the buffer."""

    def get_samples(self, num_samples: int) -> list[Group]:
        known = len(self.buffer)
        groups = super().get_samples(num_samples)
        for sample in (s for group in groups[known:] for s in group):
            sample.difficulty = sample.index
        return groups


@pytest.mark.parametrize("partial", [False, True])
def test_rewards_read_what_the_data_source_set_in_every_rollout(arguments, plugins, partial: bool) -> None:
    args = arguments(over_sampling_batch_size=8, partial_rollout=partial)
    source = Marking(args)
    for rollout_id in range(3):
        output = rollout(args, plugins, ScriptedEngine(slow_later), source, rollout_id)
        assert all(s.difficulty == s.index for s in output.samples)
