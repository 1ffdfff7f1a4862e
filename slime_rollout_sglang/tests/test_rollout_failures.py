"""What goes wrong in a rollout: one failing sample costs its group and no more, a failing engine ends the rollout at once,
and nothing hangs or is left running."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
import rollout_cases
from rollout_cases import ScriptedEngine, rollout

from slime_core.data import GlobalDataSource
from slime_core.errors import PluginError, SampleError
from slime_core.rollout.components import choose_rollout_components
from slime_core.sample import Status
from slime_rollout_sglang import groups
from slime_rollout_sglang.rollout import roll_out


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (ValueError("no answer to compare with"), "failures"),
        (float("nan"), "failures"),
        (float("inf"), "failures"),
        (None, "failures"),
        ("0.5", "failures"),
        ({}, "failures"),
        ({"score": float("nan")}, "failures"),
        ({"score": "good"}, "failures"),
        ({"score": None}, "failures"),
        ({"other": 1.0}, "failures"),
        ("hang", "timeouts"),
    ],
    ids=str,
)
def test_a_reward_that_cannot_be_had_costs_its_group_which_is_replaced_and_counted(
    arguments, plugins, answer, counted, caplog
) -> None:
    rollout_cases.state.answers = {1: [1.0, answer]}
    if answer == "hang":
        rollout_cases.state.delays = {1: 60.0}
    args = arguments(failure_policy=["reward:retries=0,timeout=0.3"], reward_key="score")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        output = rollout(args, plugins)
    assert time.monotonic() - started < 20
    assert 1 not in {s.group_index for s in output.samples}
    assert output.metrics["sampling/groups_lost_reward"] == 1
    assert output.metrics["hooks/reward/dropped"] >= 1
    assert output.metrics[f"hooks/reward/{counted}"] >= 1
    assert "sample 3" in caplog.text
    assert "prompts.jsonl:2" in caplog.text


def test_a_reward_that_fails_once_is_asked_again(arguments, plugins) -> None:
    class Flaky(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            return ConnectionError("busy") if rollout_cases.calls["reward"] <= 3 else 1.0

    rollout_cases.state.answers = {0: Flaky([0.0])}
    output = rollout(arguments(failure_policy=["reward:retries=2,backoff=0.01"]), plugins)
    assert [group[0].group_index for group in output.groups] == [0, 1, 2]
    assert output.metrics["hooks/reward/failures"] > 0
    assert output.metrics["hooks/reward/dropped"] == 0


def test_a_huge_reward_is_a_reward(arguments, plugins) -> None:
    rollout_cases.state.answers = {0: [1e308, -1e308], 1: [1e308]}
    output = rollout(arguments(dynamic_sampling_filter_path="check_reward_nonzero_std"), plugins)
    assert {s.reward for s in output.groups[0]} == {1e308, -1e308}
    assert 1 not in {s.group_index for s in output.samples}
    assert output.metrics["reward_std"] > 1e307


def test_a_group_reward_of_the_wrong_length_ends_the_run_after_so_many_in_a_row(arguments, plugins) -> None:
    args = arguments(custom_rm_path="rollout_cases.too_few", failure_policy=["reward:retries=0,abort_after=4"])
    with pytest.raises(PluginError, match=r"1 rewards for 2 samples.*failure number 4 in a row"):
        rollout(args, plugins)


def test_rewards_that_always_fail_end_in_an_error_with_counts_and_not_in_sampling_for_ever(arguments, plugins) -> None:
    rollout_cases.state.answers = {n: RuntimeError("down") for n in range(99)}
    args = arguments(max_dynamic_sampling_rounds=2, failure_policy=["reward:retries=0,abort_after=none"])
    with pytest.raises(SampleError, match=r"2 rounds of sampling .* 6 prompts, gave 0 of 3 groups.*rewards: 6"):
        rollout(args, plugins)


def test_a_reward_may_end_the_run_and_its_own_error_is_the_cause(arguments, plugins) -> None:
    rollout_cases.state.answers = {1: RuntimeError("down")}
    engine = ScriptedEngine()
    with pytest.raises(PluginError, match="RuntimeError: down") as caught:
        rollout(arguments(failure_policy=["reward:retries=0,on_failure=raise"]), plugins, engine)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not engine.running


@pytest.mark.parametrize("answer", [RuntimeError("tool crashed"), Status.FAILED, Status.ABORTED], ids=str)
def test_a_generate_function_that_fails_for_one_sample_costs_its_group(arguments, plugins, answer) -> None:
    rollout_cases.state.answers = {"generate 3": answer}
    engine = ScriptedEngine()
    output = rollout(arguments(custom_generate_function_path="rollout_cases.sometimes"), plugins, engine)
    assert [group[0].group_index for group in output.groups][:2] == [0, 2]
    why = "generator" if isinstance(answer, RuntimeError) else answer.value
    m = output.metrics
    assert m[f"sampling/groups_lost_{why}"] == 1
    assert m["generated_tokens"] == engine.handed_out == m["returned_tokens"] + m["discarded_tokens"]


def test_a_generate_function_that_leaves_a_sample_pending_is_named(arguments, plugins) -> None:
    rollout_cases.state.answers = {"generate 3": Status.PENDING}
    with pytest.raises(PluginError, match=r"rollout_cases.sometimes.* returned sample 3 .*PENDING"):
        rollout(arguments(custom_generate_function_path="rollout_cases.sometimes"), plugins)


def test_an_empty_response_is_scored_and_not_trained(arguments, plugins) -> None:
    output = rollout(arguments(custom_generate_function_path="rollout_cases.silent"), plugins)
    for sample in output.samples:
        assert (sample.response_length, sample.remove_sample) == ((1, False) if sample.index % 2 else (0, True))
        assert sample.reward == float(sample.index % 2 == 0)
    assert output.metrics["empty_responses"] == 3


class Breaking(ScriptedEngine):
    """Raises at the request number `at`, while others wait for ever."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.cancelled = at, 0

    async def generate(self, input_ids: Any, sampling_params: Any, request_id: Any = None) -> Any:
        self.requests.append((list(input_ids), sampling_params, request_id))
        if len(self.requests) > self.at:
            await asyncio.sleep(0.01)
            raise ConnectionError("the engine is gone")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.mark.parametrize("generator", [None, "rollout_cases.two_turns"])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_an_engine_that_fails_ends_the_rollout_with_its_own_error_and_everything_else_is_cancelled(
    arguments, plugins, generator, at
) -> None:
    engine = Breaking(at)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="the engine is gone"):
        rollout(arguments(custom_generate_function_path=generator), plugins, engine)
    assert time.monotonic() - started < 10
    assert engine.cancelled == at


def test_an_engine_whose_abort_fails_ends_the_rollout(arguments, plugins) -> None:
    class Stubborn(ScriptedEngine):
        async def abort(self, request_ids: Any = None) -> None:
            raise ConnectionError("cannot abort")

    def slow_later(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return range(3 if prompt[-1] < 9 else 10**6)

    args = arguments(over_sampling_batch_size=5, rollout_max_response_len=10**7)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="cannot abort"):
        rollout(args, plugins, Stubborn(slow_later))
    assert time.monotonic() - started < 10


def test_an_abort_that_overtakes_its_request_is_sent_again(arguments, plugins, monkeypatch) -> None:
    from slime_rollout_sglang import requests

    class Late(ScriptedEngine):
        """Forgets the first abort."""

        async def abort(self, request_ids: Any = None) -> None:
            if self.aborts:
                await super().abort(request_ids)
            self.aborts += 1

    def slow_later(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return range(3 if prompt[-1] < 9 else 10**9)

    monkeypatch.setattr(requests, "ABORT_AGAIN_AFTER", 0.05)
    args = arguments(over_sampling_batch_size=5, rollout_max_response_len=10**9)
    engine = Late(slow_later)
    assert [group[0].group_index for group in rollout(args, plugins, engine).groups] == [0, 1, 2]
    assert engine.aborts > 1


def test_a_reward_that_hangs_does_not_hold_up_a_rollout_that_has_enough(arguments, plugins) -> None:
    rollout_cases.state.delays = {4: 60.0}
    args = arguments(
        over_sampling_batch_size=5, partial_rollout=True, dynamic_sampling_order="prompt", failure_policy=[]
    )
    source = GlobalDataSource(args)
    started = time.monotonic()
    rollout(args, plugins, source=source)
    assert time.monotonic() - started < 10
    (waiting,) = [group for group in source.buffer if group[0].group_index == 4]
    assert [s.reward for s in waiting] == [None, None]
    assert all(s.response_length for s in waiting)


def test_a_generate_function_that_waits_for_a_tool_does_not_hold_it_up_either(arguments, plugins, monkeypatch) -> None:
    monkeypatch.setattr(groups, "GRACE_PERIOD", 0.3)
    rollout_cases.state.delays = {"tool 4": 60.0}
    args = arguments(
        over_sampling_batch_size=5,
        partial_rollout=True,
        dynamic_sampling_order="prompt",
        custom_generate_function_path="rollout_cases.with_tool",
    )
    source = GlobalDataSource(args)
    started = time.monotonic()
    output = rollout(args, plugins, source=source)
    assert time.monotonic() - started < 10
    assert [group[0].group_index for group in output.groups] == [0, 1, 2]
    (waiting,) = [group for group in source.buffer if group[0].group_index == 4]
    assert [(s.status, s.response_length, s.reward) for s in waiting] == [(Status.PENDING, 0, None)] * 2


@pytest.mark.parametrize(
    "reward", [float("nan"), "good", {"score": float("nan")}, {"other": 1.0}, {"score": "good"}], ids=str
)
def test_a_reward_of_a_generate_function_that_cannot_be_used_costs_its_group(arguments, plugins, reward) -> None:
    rollout_cases.state.answers = {"reward of 3": reward}
    args = arguments(custom_generate_function_path="rollout_cases.with_tool", reward_key="score")
    output = rollout(args, plugins)
    assert 1 not in {sample.group_index for sample in output.samples}
    assert output.metrics["sampling/groups_lost_generator"] == 1


def test_the_numbers_of_reward_dicts_are_logged(arguments, plugins) -> None:
    rollout_cases.state.answers = {
        i: [{"score": 1.0, "acc": True, "why": "x"}, {"score": -1.0, "acc": False}] for i in range(3)
    }
    metrics = rollout(arguments(reward_key="acc"), plugins).metrics
    assert (metrics["reward/score"], metrics["reward/acc"], metrics["raw_reward"]) == (0.0, 0.5, 0.5)
    assert "reward/why" not in metrics


def test_a_turn_that_a_generator_starts_after_the_stop_is_aborted_without_asking_the_engine(arguments, plugins) -> None:
    rollout_cases.state.turn_limit = 100
    engine = ScriptedEngine(lambda prompt, params: [20] * (2 if prompt[2] < 9 else 40) + [3])
    args = arguments(over_sampling_batch_size=6, custom_generate_function_path="rollout_cases.two_turns")
    output = rollout(args, plugins, engine)
    assert [group[0].group_index for group in output.groups] == [0, 1, 2]
    assert engine.aborts
    assert engine.requests_after_abort == 0


@pytest.mark.parametrize("ending", ["enough", "stopped", "engine fails", "reward ends the run"])
def test_nothing_is_left_running_however_a_rollout_ends(arguments, plugins, ending) -> None:
    options: dict[str, Any] = {"failure_policy": ["reward:retries=0,on_failure=raise"]}
    engine: Any = ScriptedEngine()
    if ending == "stopped":
        rollout_cases.state.delays = {4: 60.0}
        options |= {"over_sampling_batch_size": 5, "dynamic_sampling_order": "prompt"}
    elif ending == "engine fails":
        engine = Breaking(3)
    elif ending == "reward ends the run":
        rollout_cases.state.delays = {0: 60.0}
        rollout_cases.state.answers = {2: RuntimeError("no")}
    args = arguments(**options)
    components = choose_rollout_components(args, plugins)

    async def run() -> tuple[bool, int]:
        raised = False
        try:
            await roll_out(args, 0, GlobalDataSource(args), components, plugins, engine)
        except (ConnectionError, PluginError):
            raised = True
        return raised, len(asyncio.all_tasks()) - 1

    assert asyncio.run(run()) == (ending not in ("enough", "stopped"), 0)
