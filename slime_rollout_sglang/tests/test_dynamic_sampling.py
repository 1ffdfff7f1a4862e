"""Dynamic sampling: it stops when enough groups have passed, samples again when too few can, and always ends."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import rollout_cases
import torch
from rollout_cases import END, HoldingEngine, ScriptedEngine, rollout

from slime_core.data import GlobalDataSource
from slime_core.sample import RolloutOutput, Sample
from slime_rollout_sglang.filters import Verdict, check_reward_nonzero_std, read_verdict

FILTER = {"dynamic_sampling_filter_path": "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"}
EQUAL = [1.0]  # what `rollout_cases.by_group` answers for a group that the filter drops


def prompts_of(output: RolloutOutput) -> list[int | None]:
    return [group[0].group_index for group in output.groups]


def slower_prompts(prompt: list[int], params: dict[str, Any]) -> list[int]:
    """Each prompt's responses are ten tokens longer than those of the one before."""
    return [20] * (10 * (prompt[-1] - 5)) + [END]


def faster_prompts(prompt: list[int], params: dict[str, Any]) -> list[int]:
    return [20] * (10 * (40 - prompt[-1])) + [END]


def test_groups_that_do_not_pass_are_replaced_and_counted_by_reason(arguments, plugins) -> None:
    rollout_cases.state.answers = {0: [1.0], 2: [0.0]}
    output = rollout(arguments(**FILTER), plugins, ScriptedEngine(slower_prompts))
    assert prompts_of(output) == [1, 3, 4]
    m = output.metrics
    assert (m["dynamic_filter/drop_zero_std_1.0"], m["dynamic_filter/drop_zero_std_0.0"]) == (1, 1)
    assert (m["sampling/groups_filtered"], m["sampling/groups_made_up"]) == (2, 0)


def test_sampling_stops_the_moment_enough_groups_have_passed(arguments, plugins) -> None:
    engine = ScriptedEngine(slower_prompts)
    args = arguments(over_sampling_batch_size=12, **FILTER)
    output = rollout(args, plugins, engine)
    assert prompts_of(output) == [0, 1, 2]
    assert len(engine.requests) == 24
    assert engine.aborts == 1
    assert not engine.running
    # The third prompt's responses have 31 tokens. The others got no further, but for the turns of the event loop that it
    # takes to score and judge it.
    assert 2 * (11 + 21) + 20 * 31 <= engine.handed_out <= 2 * (11 + 21) + 20 * 50
    assert output.metrics["sampling/groups_stopped"] == 9


def test_prompts_are_sampled_again_when_too_few_groups_can_still_pass_and_not_before(arguments, plugins) -> None:
    rollout_cases.state.answers = dict.fromkeys(range(4), EQUAL)
    engine = ScriptedEngine(slower_prompts)
    output = rollout(arguments(over_sampling_batch_size=6, **FILTER), plugins, engine)
    # Of the first six, four are dropped. After the fourth, two are left where three are wanted: one more round.
    assert output.metrics["sampling/rounds"] == 2
    assert len(engine.requests) == 24
    assert prompts_of(output)[:2] == [4, 5]
    rollout_cases.state.answers = dict.fromkeys(range(3), EQUAL)
    assert rollout(arguments(over_sampling_batch_size=6, **FILTER), plugins).metrics["sampling/rounds"] == 1


def test_when_every_group_is_filtered_sampling_ends_with_the_best_and_says_so(arguments, plugins, caplog) -> None:
    rollout_cases.state.answers = {4: [0.0, 9.0], 1: [0.0, 1.0]}
    args = arguments(max_dynamic_sampling_rounds=2, dynamic_sampling_filter_path="rollout_cases.nothing_passes")
    for n in (0, 2, 3, 5):
        rollout_cases.state.answers[n] = EQUAL
    with caplog.at_level(logging.WARNING):
        output = rollout(args, plugins)
    assert prompts_of(output) == [0, 1, 4]  # 4 and 1 differ most, then the first
    assert output.metrics["sampling/groups_made_up"] == 3
    assert output.metrics["sampling/rounds"] == 2
    (message,) = [r.getMessage() for r in caplog.records if r.name != "slime_core.data.notices"]
    assert "2 rounds of sampling" in message
    assert "6 filtered" in message
    assert "filled up with 3" in message
    assert "--n-samples-per-prompt" in message


@pytest.mark.parametrize("order", ["finished", "prompt"])
def test_what_is_accepted_does_not_depend_on_how_long_rewards_take(arguments, plugins, order) -> None:
    accepted = []
    for delays in ({}, {0: 0.08, 1: 0.05, 2: 0.02}, {9: 0.08, 8: 0.05, 10: 0.01}):
        rollout_cases.state.delays = delays
        rollout_cases.state.answers = {1: EQUAL, 9: EQUAL}
        args = arguments(over_sampling_batch_size=12, dynamic_sampling_order=order, **FILTER)
        output = rollout(args, plugins, ScriptedEngine(faster_prompts))
        accepted.append([s.to_dict() for s in output.samples])
    assert accepted[0] == accepted[1] == accepted[2]


def test_the_order_finished_takes_the_fastest_groups_and_the_order_prompt_the_first(arguments, plugins) -> None:
    rollout_cases.state.answers = {1: EQUAL, 10: EQUAL}
    for order, expected in (("finished", [8, 9, 11]), ("prompt", [0, 2, 3])):
        args = arguments(over_sampling_batch_size=12, dynamic_sampling_order=order, **FILTER)
        assert prompts_of(rollout(args, plugins, ScriptedEngine(faster_prompts))) == expected


def test_in_the_order_of_prompts_the_batch_does_not_depend_on_the_speed_of_the_engine(arguments, plugins) -> None:
    class Jittery(ScriptedEngine):
        """Every request waits for a while of its own before it starts."""

        def __init__(self, jitter: int) -> None:
            super().__init__()
            self.jitter = jitter

        async def generate(self, input_ids: Any, sampling_params: Any, request_id: Any = None) -> Any:
            for _ in range(hash((self.jitter, sampling_params["seed"])) % 30):
                await asyncio.sleep(0)
            return await super().generate(input_ids, sampling_params, request_id)

    rollout_cases.state.answers = {1: EQUAL, 4: EQUAL, 9: EQUAL}
    outcomes = []
    for jitter in range(4):
        args = arguments(over_sampling_batch_size=5, dynamic_sampling_order="prompt", **FILTER)
        source = GlobalDataSource(args)
        output = rollout(args, plugins, Jittery(jitter), source)
        outcomes.append(([s.to_dict() for s in output.samples], source.state_dict()))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert prompts_of(output) == [0, 2, 3]


@pytest.mark.parametrize("order", ["finished", "prompt"])
def test_an_engine_that_can_wait_does_so_while_a_group_is_judged_that_may_be_the_last(
    arguments, plugins, order
) -> None:
    rollout_cases.state.answers = {1: EQUAL}
    outcomes = []
    for seconds in (0.0, 0.05):
        rollout_cases.state.delays = dict.fromkeys(range(12), seconds)
        args = arguments(
            over_sampling_batch_size=12, dynamic_sampling_order=order, partial_rollout=True, failure_policy=[], **FILTER
        )
        source, engine = GlobalDataSource(args), HoldingEngine(slower_prompts)
        output = rollout(args, plugins, engine, source)
        outcomes.append(([s.to_dict() for s in output.samples], source.state_dict()))
        assert output.metrics["engine/holds"] > 0
        assert not engine.is_held
    assert outcomes[0] == outcomes[1]  # also how far the responses have come that are put back


@pytest.mark.parametrize("grace", [5.0, 0.0])
def test_no_sample_is_scored_by_a_judgement_that_the_end_of_sampling_cut_off(
    arguments, plugins, monkeypatch, grace
) -> None:
    monkeypatch.setattr("slime_rollout_sglang.groups.GRACE_PERIOD", grace)
    rollout_cases.state.judgement = 200
    args = arguments(
        over_sampling_batch_size=6,
        partial_rollout=True,
        custom_rm_path="rollout_cases.judged_by_the_engine",
        failure_policy=["reward:retries=0,on_failure=raise"],
    )

    def slower(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [20] * 300 if params["max_new_tokens"] == 200 else slower_prompts(prompt, params)

    source, engine = GlobalDataSource(args), ScriptedEngine(slower)
    output = rollout(args, plugins, engine, source)
    assert all(sample.reward is not None for sample in output.samples)
    waiting = [sample.reward for group in source.buffer for sample in group]
    assert len(waiting) == 6
    assert (None in waiting) == (not grace)
    assert not engine.running


@pytest.mark.parametrize("order", ["finished", "prompt"])
def test_an_engine_that_waits_for_a_verdict_answers_the_reward_that_gives_it(arguments, plugins, order) -> None:
    args = arguments(
        over_sampling_batch_size=6,
        dynamic_sampling_order=order,
        custom_rm_path="rollout_cases.judged_by_the_engine",
        failure_policy=["reward:timeout=5,retries=0,on_failure=raise"],
        **FILTER,
    )
    engine = HoldingEngine(slower_prompts)
    output = rollout(args, plugins, engine)
    assert prompts_of(output) == [0, 1, 2]
    assert output.metrics["engine/holds"] > 0
    assert not engine.is_held


def test_an_engine_does_not_wait_where_no_verdict_can_stop_it(arguments, plugins) -> None:
    assert rollout(arguments(), plugins, HoldingEngine()).metrics["engine/holds"] == 0


@pytest.mark.parametrize("name", ["slime_style", "as_object"])
def test_filters_may_answer_in_any_of_the_ways_that_are_in_use(arguments, plugins, name) -> None:
    rollout_cases.state.answers = {1: EQUAL}
    args = arguments(dynamic_sampling_filter_path=f"rollout_cases.{name}")
    output = rollout(args, plugins, ScriptedEngine(slower_prompts))
    assert prompts_of(output) == [0, 2, 3]
    reason = "object" if name == "as_object" else "filtered"
    assert output.metrics[f"dynamic_filter/drop_{reason}"] == 1


def test_verdicts_are_read_from_all_forms() -> None:
    assert read_verdict(True) == Verdict(True, "filtered")
    assert read_verdict((False, "why")) == Verdict(False, "why")
    assert read_verdict(SimpleNamespace(keep=False, reason=None)) == Verdict(False, "filtered")
    scarce = SimpleNamespace(keep=torch.tensor(False), reason="flat", keep_when_insufficient=True)
    assert read_verdict(scarce) == Verdict(False, "flat", keep_when_insufficient=True)


@pytest.mark.parametrize(
    ("over", "kept", "made_up", "rounds"), [(3, [0, 1, 2], 2, 1), (5, [1, 3, 4], 0, 1), (4, [1, 2, 3], 1, 1)]
)
def test_a_group_that_is_kept_where_there_are_too_few_others_costs_no_further_prompts(
    arguments, plugins, over, kept, made_up, rounds
) -> None:
    rollout_cases.state.answers = {0: EQUAL, 2: EQUAL}
    args = arguments(
        dynamic_sampling_filter_path="check_reward_nonzero_std_with_fallback",
        over_sampling_batch_size=over,
        dynamic_sampling_order="prompt",
    )
    output = rollout(args, plugins, ScriptedEngine(slower_prompts))
    assert (sorted(prompts_of(output)), output.metrics["sampling/groups_made_up"]) == (kept, made_up)
    assert output.metrics["sampling/rounds"] == rounds


def test_a_group_passes_when_its_rewards_differ_however_large_they_are() -> None:
    args = SimpleNamespace(reward_key=None)

    def keeps(*rewards: float) -> bool:
        return check_reward_nonzero_std(args, [Sample(index=i, reward=r) for i, r in enumerate(rewards)])[0]

    assert keeps(-1e308, 1e308)
    assert not keeps(1e308, 1e308)
    assert not keeps(0.1, 0.1, 0.1)  # whose standard deviation, computed in float32, need not be 0
    dicts = [Sample(index=i, reward={"a": i, "b": 1}) for i in range(2)]
    assert check_reward_nonzero_std(SimpleNamespace(reward_key="a"), dicts)[0]
    assert check_reward_nonzero_std(SimpleNamespace(reward_key="b"), dicts) == (False, "zero_std_1.0")


def test_groups_stopped_without_partial_rollout_go_back_as_fresh_prompts(arguments, plugins) -> None:
    args = arguments(over_sampling_batch_size=8, **FILTER)
    source = GlobalDataSource(args)
    engine = ScriptedEngine(slower_prompts)
    output = rollout(args, plugins, engine, source)
    assert [group[0].group_index for group in source.buffer] == [3, 4, 5, 6, 7]
    for sample in (s for group in source.buffer for s in group):
        assert (sample.response_length, sample.reward, sample.rollout_log_probs) == (0, None, None)
        assert "start_rollout_id" not in sample.metadata
    kept = sum(s.response_length for s in output.samples)
    assert output.metrics["aborted_tokens_discarded"] == engine.handed_out - kept > 0
    later = rollout(args, plugins, source=source, rollout_id=1)
    assert len({s.index for s in [*output.samples, *later.samples]}) == 12
