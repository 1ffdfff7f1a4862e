"""Generate functions of one's own: several turns, several samples from one prompt, rewards they set themselves."""

from __future__ import annotations

from typing import Any

import rollout_cases
from rollout_cases import ScriptedEngine, rollout

from slime_core.sample import Sample
from slime_rollout_sglang.metrics import response_metrics


def test_tokens_of_tools_are_in_the_sample_and_not_trained(arguments, plugins) -> None:
    engine = ScriptedEngine()
    output = rollout(arguments(custom_generate_function_path="rollout_cases.two_turns"), plugins, engine)
    for sample in output.samples:
        response = sample.tokens[-sample.response_length :]
        tool = [i for i, trained in enumerate(sample.trained_mask) if not trained]
        assert [response[i] for i in tool] == [30, 31]
    assert output.metrics["inserted_tokens"] == 2 * 6
    own = [sample.response_length - 2 for sample in output.samples]
    assert output.metrics["response_len/mean"] == sum(own) / 6
    assert (output.metrics["response_len/min"], output.metrics["response_len/max"]) == (min(own), max(own))
    assert output.metrics["returned_tokens"] == sum(own) + 2 * 6
    assert output.metrics["generated_tokens"] == engine.handed_out


def test_every_turn_draws_random_numbers_of_its_own(arguments, plugins) -> None:
    engine = ScriptedEngine()
    rollout(arguments(custom_generate_function_path="rollout_cases.two_turns"), plugins, engine)
    assert len({params["seed"] for _, params, _ in engine.requests}) == 12
    again = ScriptedEngine()
    rollout(arguments(custom_generate_function_path="rollout_cases.two_turns"), plugins, again)
    assert sorted(p["seed"] for _, p, _ in again.requests) == sorted(p["seed"] for _, p, _ in engine.requests)


def test_several_samples_from_one_become_part_of_its_group_and_are_all_scored(arguments, plugins) -> None:
    output = rollout(arguments(custom_generate_function_path="rollout_cases.twins"), plugins)
    assert [len(group) for group in output.groups] == [4, 4, 4]
    assert rollout_cases.calls["reward"] == 12
    assert all(s.reward is not None for s in output.samples)


def test_a_group_reward_scores_all_samples_that_came_of_a_group(arguments, plugins) -> None:
    args = arguments(custom_generate_function_path="rollout_cases.twins", custom_rm_path="rollout_cases.ranks")
    assert [len({s.reward for s in group}) for group in rollout(args, plugins).groups] != [1, 1, 1]
    assert rollout_cases.calls["group reward"] == 3


def test_a_generator_that_asks_is_told_whether_it_answers_an_evaluation(arguments, plugins) -> None:
    args = arguments(2, custom_generate_function_path="rollout_cases.told")
    args = args.model_copy(update={"eval_prompt_data": ["held", *args.prompt_data]})
    rollout(args, plugins)
    assert rollout_cases.calls["evaluation=False"] == 6
    rollout(args, plugins, evaluation=True)
    assert (rollout_cases.calls["evaluation=True"], rollout_cases.calls["evaluation=False"]) == (2, 6)


def test_a_reward_that_the_generator_set_is_not_computed_again(arguments, plugins) -> None:
    args = arguments(custom_generate_function_path="rollout_cases.self_scored", custom_rm_path=None)
    assert {s.reward for s in rollout(args, plugins).samples} == {0.25}


def test_a_generator_never_sees_the_sample_of_another_attempt(arguments, plugins) -> None:
    rollout_cases.state.answers = {"generate 2": RuntimeError("once")}

    class Forgiving(ScriptedEngine):
        async def generate(self, input_ids: Any, sampling_params: Any, request_id: Any = None) -> Any:
            done = await super().generate(input_ids, sampling_params, request_id)
            if len(self.requests) > 6:
                rollout_cases.state.answers = {}
            return done

    args = arguments(
        custom_generate_function_path="rollout_cases.sometimes", failure_policy=["generator:retries=2,backoff=0.01"]
    )
    engine = Forgiving()
    output = rollout(args, plugins, engine)
    (sample,) = [s for s in output.samples if s.index == 2]
    assert sample.response_length == len(sample.tokens) - 3 < 12
    m = output.metrics
    assert m["hooks/generator/failures"] == 1
    assert m["generated_tokens"] == engine.handed_out == m["returned_tokens"] + m["discarded_tokens"]
    assert m["discarded_tokens"] > 0


def test_a_response_of_which_nothing_is_trained_has_no_length_and_is_not_empty() -> None:
    masked, empty = Sample(index=0, response_length=2, loss_mask=[0, 0]), Sample(index=1)
    assert response_metrics([masked])["response_len/max"] == 0
    assert "empty_responses" not in response_metrics([masked])
    assert response_metrics([masked, empty])["empty_responses"] == 1
