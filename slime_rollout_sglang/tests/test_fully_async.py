"""The fully asynchronous rollout on a scripted engine: which groups come when, what a failure does, what a checkpoint has."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rollout_cases
import trajectory_cases
from rollout_cases import END, ScriptedEngine, random_words, rollout

from slime_core.contracts.rollout import Background
from slime_core.data import GlobalDataSource
from slime_core.errors import ArgumentError, PluginError, SampleError
from slime_core.rollout.components import choose_rollout_components
from slime_core.rollout.in_flight import load_state
from slime_core.rollout.worker import RolloutWorker
from slime_core.sample import RolloutOutput, Sample, check_rollout
from slime_core.trajectories import gather_trajectories, in_trajectories
from slime_rollout_sglang.fully_async import generate_rollout


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "fully-async"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the test never got so far"
        time.sleep(0.001)


class Run:
    """A run without a trainer: `rollout(n)` hands the engine version n, as the loop does, and asks for rollout n."""

    def __init__(self, args: Any, plugins: Any, engine: Any = None, state: dict[str, Any] | None = None) -> None:
        self.args, self.plugins = args, plugins
        self.components = choose_rollout_components(args, plugins)
        self.engine = engine or ScriptedEngine(version=0)
        self.source = GlobalDataSource(args)
        if state is not None:
            load_state(self.source, state)
        self.background = Background()
        self.groups: list[list[Sample]] = []
        self.metrics: dict[int, dict[str, float]] = {}

    def rollout(self, rollout_id: int) -> RolloutOutput:
        self.engine.update_weights(None, rollout_id)
        output = self.call(rollout_id)
        check_rollout(output.groups, need_reward=True)
        assert len(output.groups) == self.args.rollout_batch_size
        for sample in output.samples:
            assert len(sample.weight_versions) == sample.response_length
            assert rollout_id - min(sample.weight_versions) <= self.args.max_staleness
        self.groups += output.groups
        self.metrics[rollout_id] = output.metrics
        return output

    def call(self, rollout_id: int, evaluation: bool = False) -> RolloutOutput:
        return generate_rollout(
            self.args,
            rollout_id,
            self.source,
            evaluation,
            components=self.components,
            plugins=self.plugins,
            engine=self.engine,
            background=self.background,
        )

    def state(self) -> dict[str, Any]:
        """As a checkpoint stores it."""
        return json.loads(json.dumps(self.background.data_state(self.source), default=Sample.to_dict))

    @property
    def prompts(self) -> list[int | None]:
        return [group[0].group_index for group in self.groups]


@pytest.fixture
def start(arguments, plugins) -> Iterator[Callable[..., Run]]:
    """`start(rows, engine=…, state=…, **options)`: a run, whose thread has ended when the test has."""
    runs: list[Run] = []

    def make(rows: Any = 40, engine: Any = None, state: Any = None, **changes: Any) -> Run:
        options = {"rollout_function_path": "fully_async", "num_rollout": 6, **changes}
        runs.append(Run(arguments(rows, **options), plugins, engine, state))
        return runs[-1]

    yield make
    for run in runs:
        run.background.close()
        assert not run.engine.running
    assert not threads()


def some_slow(prompt: list[int], params: dict[str, Any]) -> list[int]:
    """The prompts of rows 0, 5, 10 … get responses of 400 tokens, the others short ones."""
    row = prompt[2] - 6
    return [10] * 400 + [END] if row % 5 == 0 else random_words(prompt, params)


class Gated(ScriptedEngine):
    """The first row's prompt is answered, or fails with `error`, when `open` is set."""

    def __init__(self) -> None:
        super().__init__(version=0)
        self.open = threading.Event()
        self.error: Exception | None = None

    async def generate(self, input_ids: Any, sampling_params: Any, request_id: str | None = None) -> Any:
        while input_ids[2] == 6 and not self.open.is_set():
            await asyncio.sleep(0.001)
        if self.open.is_set() and self.error:
            raise self.error
        return await super().generate(input_ids, sampling_params, request_id)


# ----------------------------------------------------------------------------------------------------- what comes when


def test_without_staleness_the_samples_are_those_of_the_synchronous_rollout(start) -> None:
    rollout_cases.state.answers = {n: [1.0, 1.0] for n in (0, 4, 5, 9)}
    options = {"max_staleness": 0, "dynamic_sampling_filter_path": "check_reward_nonzero_std"}
    run = start(**options)
    sync = start(**options, rollout_function_path="rl", dynamic_sampling_order="prompt")
    for rollout_id in range(4):
        output = run.rollout(rollout_id)
        sync.engine.update_weights(None, rollout_id)
        expected = rollout(sync.args, sync.plugins, sync.engine, sync.source, rollout_id)
        assert [[s.to_dict() for s in group] for group in output.groups] == [
            [s.to_dict() for s in group] for group in expected.groups
        ]
        assert output.metrics["staleness/max"] == output.metrics["in_flight/groups"] == 0
        assert output.metrics["sampling/groups_filtered"] >= (rollout_id in (0, 1))


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("trainer_seconds", [0.0, 0.1], ids=["slow generator", "slow trainer"])
def test_no_token_is_older_than_the_bound_and_none_is_lost_or_returned_twice(start, bound, trainer_seconds) -> None:
    run = start(engine=ScriptedEngine(some_slow, version=0), max_staleness=bound)
    for rollout_id in range(6):
        run.rollout(rollout_id)
        assert run.metrics[rollout_id]["staleness/max"] <= bound
        time.sleep(trainer_seconds)
    assert sorted(run.prompts) == list(range(18))
    assert run.engine.handed_out == sum(m["generated_tokens"] for m in run.metrics.values())
    assert run.engine.handed_out == sum(s.response_length for group in run.groups for s in group)
    assert (max(m["staleness/max"] for m in run.metrics.values()) > 0) == (bound > 0)
    assert run.metrics[5]["in_flight/groups"] == 0  # nothing is begun that no rollout needs


def test_groups_go_on_while_the_trainer_trains_and_a_slow_one_is_overtaken_until_it_is_due(start) -> None:
    engine = Gated()
    run = start(engine=engine, max_staleness=2, rollout_batch_size=2)
    for rollout_id in range(2):
        assert run.rollout(rollout_id).metrics["in_flight/groups"] == 4
        work = run.background.work
        until(lambda work=work: work.finished == 3)  # all but the slow one, without being asked
    begun = len(engine.requests)
    assert 0 not in run.prompts
    threading.Timer(0.3, engine.open.set).start()
    run.rollout(2)
    assert engine.open.is_set()
    assert 0 in run.prompts
    assert len(engine.requests) - begun == 4 + 2  # those of two new groups, as the bound allows, and the slow one's


def test_a_group_that_is_filtered_out_is_replaced_while_the_trainer_trains(start) -> None:
    rollout_cases.state.answers = {n: [1.0, 1.0] for n in range(0, 40, 2)}
    run = start(dynamic_sampling_filter_path="check_reward_nonzero_std")
    for rollout_id in range(3):
        run.rollout(rollout_id)
        work = run.background.work
        until(lambda work=work: work.finished == 3)
    assert all(number % 2 for number in run.prompts)
    filtered = sum(m["dynamic_filter/drop_zero_std_1.0"] for m in run.metrics.values())
    assert filtered == sum(m["sampling/groups_filtered"] for m in run.metrics.values()) >= 8


def test_a_filter_that_would_keep_rejected_groups_for_want_of_others_is_told_once_that_none_is_kept(
    start, caplog
) -> None:
    rollout_cases.state.answers = {n: [1.0, 1.0] for n in range(0, 40, 2)}
    run = start(dynamic_sampling_filter_path="check_reward_nonzero_std_with_fallback")
    with caplog.at_level(logging.WARNING):
        for rollout_id in range(2):
            run.rollout(rollout_id)
    assert all(number % 2 for number in run.prompts)
    told = [record.getMessage() for record in caplog.records if "keep_when_insufficient" in record.getMessage()]
    assert len(told) == 1
    assert "(zero_std_1.0)" in told[0]


def test_a_filter_that_passes_nothing_ends_in_a_full_rollout_and_a_warning(start, caplog) -> None:
    run = start(dynamic_sampling_filter_path="rollout_cases.nothing_passes", max_dynamic_sampling_rounds=2)
    with caplog.at_level(logging.WARNING):
        for rollout_id in range(2):
            run.rollout(rollout_id)
            assert run.metrics[rollout_id]["sampling/groups_made_up"] == 3
            assert run.metrics[rollout_id]["sampling/groups_started"] == 9
    assert "filled up with 3 of those that were filtered out" in caplog.text
    assert len(set(run.prompts)) == 6


def test_group_rewards_and_sample_filters_work_as_in_other_rollouts(start) -> None:
    options = {"custom_rm_path": "rollout_cases.ranks", "rollout_sample_filter_path": "rollout_cases.remove_odd"}
    run = start(**options, rollout_all_samples_process_path="rollout_cases.watch")
    output = run.rollout(0)
    assert [[s.reward for s in group] for group in output.groups].count([0.0, 1.0]) < 3
    assert output.metrics["removed_samples"] == 3
    assert sorted(rollout_cases.state.seen) == sorted([s.index for s in group] for group in output.groups)


def test_an_evaluation_leaves_everything_on_its_way_and_begins_no_group(start, tmp_path) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text('{"input": "w4 w5 w7", "label": "w6"}\n')
    engine = ScriptedEngine(some_slow, version=0)
    run = start(engine=engine, eval_prompt_data=["held", str(path)], max_staleness=2)
    assert len(run.call(-1, evaluation=True).generations) == 1
    assert run.background.work is None
    run.rollout(0)
    begun = len(engine.requests)
    answers = run.call(0, evaluation=True).generations
    assert [answer.dataset for answer in answers] == ["held"]
    assert len(engine.requests) == begun + 1
    assert engine.aborts == 0
    for rollout_id in range(1, 6):
        run.rollout(rollout_id)
    assert sorted(run.prompts) == list(range(18))


# ---------------------------------------------------------------------------------------------------- failures, the end


@pytest.mark.parametrize("answer", [RuntimeError("tool crashed"), "aborted"], ids=str)
def test_one_failing_sample_costs_its_group_which_is_replaced_and_counted_once(start, answer) -> None:
    rollout_cases.state.answers = {"generate 3": answer}
    if answer == "aborted":
        rollout_cases.state.answers = {"generate 3": Sample.Status.ABORTED}
    run = start(custom_generate_function_path="rollout_cases.sometimes")
    for rollout_id in range(3):
        run.rollout(rollout_id)
    assert 1 not in run.prompts
    why = "sampling/groups_lost_" + ("aborted" if answer == "aborted" else "generator")
    assert sum(m.get(why, 0.0) for m in run.metrics.values()) == 1
    failures = sum(m["hooks/generator/failures"] for m in run.metrics.values())
    assert failures == (answer != "aborted")


def test_rewards_that_always_fail_end_in_an_error_and_not_in_sampling_for_ever(start) -> None:
    rollout_cases.state.answers = {n: RuntimeError("down") for n in range(99)}
    policy = ["reward:retries=0,abort_after=none"]
    run = start(max_dynamic_sampling_rounds=2, max_staleness=0, failure_policy=policy)
    with pytest.raises(SampleError, match=r"6 prompts, gave 0 of 3 groups.*rewards: 6"):
        run.rollout(0)


def test_what_fails_between_two_calls_is_raised_by_the_next_one_with_its_notes(start) -> None:
    engine = Gated()
    run = start(engine=engine, max_staleness=2)
    run.rollout(0)
    engine.error = ConnectionError("the server is gone")
    engine.error.add_note("asked by the test")
    engine.open.set()
    until(lambda: not threads())
    for evaluation in (False, False, True):
        with pytest.raises(ConnectionError, match="the server is gone") as caught:
            run.call(1, evaluation)
        assert "asked by the test" in caught.value.__notes__


def test_what_fails_after_the_last_call_is_told_when_the_run_ends(start, caplog) -> None:
    engine = Gated()
    run = start(engine=engine, max_staleness=2)
    run.rollout(0)
    engine.error = ConnectionError("the server is gone")
    engine.open.set()
    until(lambda: not threads())
    with caplog.at_level(logging.WARNING):
        run.background.close()
    assert "ConnectionError: the server is gone" in caplog.text


def test_a_policy_that_ends_the_run_ends_a_call_that_waits(start) -> None:
    rollout_cases.state.answers = {1: RuntimeError("down")}
    run = start(max_staleness=0, failure_policy=["reward:retries=0,on_failure=raise"])
    with pytest.raises(PluginError, match="RuntimeError: down") as caught:
        run.rollout(0)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not threads()
    assert not run.engine.running


def test_the_worker_ends_the_thread_and_what_it_waits_for(arguments, plugins) -> None:
    def endless(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [10] * 10**6 if prompt[2] % 2 else random_words(prompt, params)

    function = "fully_async_rollout.generate_rollout_fully_async"
    args = arguments(rollout_function_path=function, num_rollout=4, rollout_max_response_len=10**6, max_staleness=3)
    engine = ScriptedEngine(endless, version=0)
    components = choose_rollout_components(args, plugins)
    worker = RolloutWorker(args, plugins, components, GlobalDataSource(args), engine)
    try:
        result = worker.generate(0)
        assert len(result.data_state["in_flight"]) == 9
        assert threads()
        assert engine.running
    finally:
        worker.close()
    assert not threads()
    assert not engine.running
    assert engine.aborts == 1
    with pytest.raises(PluginError, match="closed"):
        worker.generate(1)


def test_an_engine_that_reports_wrong_versions_is_noticed(start) -> None:
    run = start(max_staleness=1)
    run.rollout(0)
    run.call(1)  # the engine is not given version 1
    with pytest.raises(SampleError, match=r"weight version 0.* of version 2.*--max-staleness is 1"):
        run.call(2)


def test_rollouts_out_of_order_are_refused(start) -> None:
    run = start()
    run.rollout(0)
    with pytest.raises(PluginError, match="asked for rollout 3 and expected 1"):
        run.call(3)


def test_without_an_engine_the_message_says_what_to_add(start) -> None:
    run = start()
    with pytest.raises(ArgumentError, match=r"The rollout 'fully_async'.*--rollout-engine"):
        generate_rollout(
            run.args, 0, run.source, components=run.components, plugins=run.plugins, background=run.background
        )


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("partial", [False, True])
def test_a_resumed_run_goes_on_without_losing_or_repeating_a_prompt(start, partial) -> None:
    options = {"max_staleness": 2, "partial_rollout": partial}
    run = start(engine=ScriptedEngine(some_slow, version=0), **options)
    for rollout_id in range(3):
        run.rollout(rollout_id)
        work = run.background.work
        until(lambda work=work: work.finished >= 4)
    state, before = run.state(), list(run.prompts)
    assert len(state["in_flight"]) == 6
    finished = [s for group in state["in_flight"] for s in group if s["status"] != "pending"]
    assert bool(finished) == partial
    run.background.close()

    rest = start(engine=ScriptedEngine(some_slow, version=3), state=state, **options)
    assert len(rest.source.buffer) == 6
    for rollout_id in range(3, 6):
        rest.rollout(rollout_id)
    assert sorted(before + rest.prompts) == list(range(18))
    kept = {s["index"]: s for s in finished}
    again = {s.index: s for group in rest.groups for s in group if s.index in kept}
    assert again.keys() == kept.keys()
    assert all(s.tokens == kept[index]["tokens"] for index, s in again.items())
    assert rest.engine.handed_out == sum(m["generated_tokens"] for m in rest.metrics.values())


def test_tokens_that_would_be_too_old_after_a_resume_start_afresh(start) -> None:
    options = {"max_staleness": 2, "partial_rollout": True}
    run = start(**options)
    run.rollout(0)
    work = run.background.work
    until(lambda: work.finished >= 4)
    run.rollout(1)
    state = run.state()
    kept = [s for group in state["in_flight"] for s in group if s["response_length"]]
    assert kept
    run.background.close()
    rest = start(engine=ScriptedEngine(version=5), state=state, **{**options, "num_rollout": 9})
    rest.rollout(5)
    assert rest.metrics[5]["in_flight/started_afresh"] > 0
    assert rest.metrics[5]["staleness/max"] == 0


def test_trajectories_of_several_segments_stay_whole_in_flight_and_across_a_restart(start, monkeypatch) -> None:
    monkeypatch.setattr(trajectory_cases.state, "kinds", ("parts", "copies"))
    monkeypatch.setattr(trajectory_cases.state, "failures", False)
    options = {
        "custom_generate_function_path": "trajectory_cases.agent",
        "custom_rm_path": "trajectory_cases.reward",
        "max_staleness": 2,
        "partial_rollout": True,
    }
    run = start(200, **options)
    seen: list[int | None] = []
    for rollout_id in range(6):
        if rollout_id in (2, 4):
            state = run.state()
            for group in state["in_flight"]:
                first = group[0]["group_index"]
                assert [sample["index"] for sample in group] == [2 * first, 2 * first + 1]
            run = start(200, state=state, **options)
        groups = run.rollout(rollout_id).groups
        gather_trajectories(groups)
        for group in groups:
            trajectories = in_trajectories(group)
            assert [t[0].index for t in trajectories] == [2 * group[0].group_index, 2 * group[0].group_index + 1]
            assert [len(t) for t in trajectories] == [trajectory_cases.plan(t[0].index)[1] for t in trajectories]
            seen.append(group[0].group_index)
    assert len(set(seen)) == len(seen) == 18
