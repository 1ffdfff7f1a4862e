"""Evaluation: every set with its own sampling, pass@k, and nothing of the training data touched."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import rollout_cases
from rollout_cases import END, ScriptedEngine, rollout

from slime_core.data import GlobalDataSource
from slime_core.errors import DataError, SampleError
from slime_core.sample import RolloutOutput
from slime_core.trajectories import pass_at_k


@pytest.fixture
def eval_sets(tmp_path: Path) -> list[str]:
    """Two sets, of three and two prompts, in the form of --eval-prompt-data."""
    spec = []
    for name, count in (("easy", 3), ("hard", 2)):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"question": f"w{7 + n} w8", "truth": f"w{n}", "input": "w4"} for n in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec += [name, str(path)]
    return spec


@pytest.fixture
def evaluate(arguments, plugins, eval_sets):
    """`evaluate(engine, **changes)`."""

    def run(engine: ScriptedEngine, rollout_id: int = 0, **changes: Any) -> RolloutOutput:
        args = arguments(
            **{"eval_prompt_data": eval_sets, "eval_input_key": "question", "eval_label_key": "truth", **changes}
        )
        source = GlobalDataSource(args)
        before = source.state_dict()
        output = rollout(args, plugins, engine, source, rollout_id, evaluation=True)
        assert source.state_dict() == before
        return output

    return run


def test_every_prompt_of_every_set_is_answered_as_often_as_asked_and_scored(evaluate) -> None:
    output = evaluate(ScriptedEngine(), n_samples_per_eval_prompt=4, custom_rm_path="rollout_cases.length_reward")
    by_set = [(s.dataset, tuple(s.tokens[: len(s.tokens) - s.response_length])) for s in output.generations]
    assert by_set == [
        (name, (7 + n, 8)) for name, count in (("easy", 3), ("hard", 2)) for n in range(count) for _ in range(4)
    ]
    assert len({s.index for s in output.generations}) == 20
    assert [s.label for s in output.generations[::4]] == ["w0", "w1", "w2", "w0", "w1"]
    assert all(s.reward == s.response_length for s in output.generations)
    lengths = [s.response_length for s in output.generations if s.dataset == "hard"]
    assert output.metrics["hard/response_len/mean"] == pytest.approx(sum(lengths) / 8)
    assert "hard/pass@1" not in output.metrics  # rewards are lengths, not right or wrong


@pytest.mark.parametrize("which", ["custom_generate_function_path", "rollout_sample_hook_path"])
def test_answers_belong_to_their_set_whatever_a_hook_puts_in_place_of_the_metadata(evaluate, which: str) -> None:
    hook = "rollout_cases.own_metadata" if "generate" in which else ["rollout_cases.metadata_of_its_own"]
    output = evaluate(ScriptedEngine(), **{which: hook})
    assert [s.dataset for s in output.generations] == ["easy"] * 3 + ["hard"] * 2
    assert all(s.source and s.metadata["mine"] == 1 for s in output.generations)


def test_evaluation_samples_as_rollouts_do_but_for_what_is_given_to_it(evaluate) -> None:
    rollouts = {"rollout_temperature": 0.8, "rollout_top_p": 0.9, "rollout_top_k": 7, "rollout_max_response_len": 50}
    own = {"eval_temperature": 0.0, "eval_top_p": 0.7, "eval_top_k": -1, "eval_max_response_len": 99}
    for given, expected in (({}, (0.8, 0.9, 7, 50)), ({**own, "eval_min_new_tokens": 2}, (0.0, 0.7, -1, 99))):
        engine = ScriptedEngine()
        evaluate(engine, **rollouts, **given)
        for _, p, _ in engine.requests:
            assert (p["temperature"], p["top_p"], p["top_k"], p["max_new_tokens"]) == expected
            assert p.get("min_new_tokens") == given.get("eval_min_new_tokens")


def test_two_evaluations_differ_by_the_weights_alone(evaluate) -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    outputs = [evaluate(engine, rollout_id=i) for i, engine in enumerate(engines)]
    assert [s.tokens for s in outputs[0].generations] == [s.tokens for s in outputs[1].generations]
    seeds = [p["seed"] for _, p, _ in engines[0].requests]
    assert len(set(seeds)) == len(seeds)


def seeds_of(evaluate: Any, **changes: Any) -> dict[tuple[Any, ...], int]:
    """{(set, first token of the prompt, which answer): seed}"""
    engine, found = ScriptedEngine(), {}
    output = evaluate(engine, **changes)
    for sample, (prompt, params, _) in zip(output.generations, engine.requests, strict=True):
        places = (sample.dataset, prompt[0])
        found[*places, sum(key[:2] == places for key in found)] = params["seed"]
    return found


def test_answers_depend_neither_on_other_sets_nor_on_how_many_there_are(evaluate, eval_sets: list[str]) -> None:
    whole = seeds_of(evaluate)
    assert len(set(whole.values())) == len(whole) == 5
    for changes in ({"eval_prompt_data": eval_sets[2:]}, {"eval_prompt_data": [*eval_sets[2:], *eval_sets[:2]]}):
        found = seeds_of(evaluate, **changes)
        assert found == {key: seed for key, seed in whole.items() if key in found}
    more = seeds_of(evaluate, n_samples_per_eval_prompt=3)
    assert whole == {key: seed for key, seed in more.items() if key[2] == 0}
    assert len(set(more.values())) == len(more) == 15


def test_a_set_without_the_category_has_no_metric_of_it(evaluate) -> None:
    asked = {"log_reward_category": "format", "eval_reward_key": "format"}
    numbers = {"custom_rm_path": "rollout_cases.length_reward"}
    dicts = {"custom_rm_path": "rollout_cases.two_numbers"}
    metrics = evaluate(ScriptedEngine(), **asked, **dicts, eval_set_options={"easy": numbers}).metrics
    assert {name.partition("/")[0] for name in metrics if "error_cat" in name} == {"hard"}
    with pytest.raises(SampleError, match="--log-reward-category is 'format', but no reward is a dict with that key"):
        evaluate(ScriptedEngine(), **asked, **numbers)


def test_pass_at_k_is_the_share_of_draws_of_k_with_a_right_answer_in_them() -> None:
    for n in (1, 2, 5):
        for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_reported_for_powers_of_two_when_rewards_are_0_or_1(evaluate) -> None:
    rollout_cases.state.answers = {0: [1.0], 1: [0.0], 2: [1.0, 0.0]}
    metrics = evaluate(ScriptedEngine(), n_samples_per_eval_prompt=6).metrics
    assert {name for name in metrics if name.startswith("easy/pass")} == {"easy/pass@1", "easy/pass@2", "easy/pass@4"}
    assert metrics["easy/pass@1"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics["easy/pass@2"] == pytest.approx((1 + 0 + 0.8) / 3)
    assert metrics["easy/pass@4"] == pytest.approx((1 + 0 + 1) / 3)
    rollout_cases.state.answers = {0: [1.0], 1: [0.5], 2: [1.0, 0.0]}
    assert "easy/pass@1" not in evaluate(ScriptedEngine(), n_samples_per_eval_prompt=6).metrics
    asked = evaluate(ScriptedEngine(), n_samples_per_eval_prompt=6, log_passrate=True).metrics
    assert asked["easy/pass@2"] == pytest.approx((1 + 0 + 0.8) / 3)  # a reward of 0.5 is not correct


def test_cut_off_answers_are_counted_per_set(evaluate) -> None:
    engine = ScriptedEngine(lambda prompt, params: [20] * (9 if prompt[0] == 7 else 2) + [END])
    metrics = evaluate(engine, eval_max_response_len=5).metrics
    assert metrics["easy/truncated_ratio"] == pytest.approx(1 / 3)
    assert metrics["hard/truncated_ratio"] == pytest.approx(1 / 2)


def test_an_answer_without_reward_is_left_out_and_counted_and_takes_no_other_with_it(evaluate) -> None:
    rollout_cases.state.answers = {0: [1.0, RuntimeError("no"), 1.0], 1: [1.0], 2: [0.0], 3: [1.0], 4: [1.0]}
    output = evaluate(ScriptedEngine(), n_samples_per_eval_prompt=3)
    assert len(output.generations) == 14
    assert output.metrics["easy/answers_lost"] == 1
    assert "hard/answers_lost" not in output.metrics
    assert output.metrics["easy/pass@1"] == 0.5  # over the two prompts that have all their answers


def test_of_a_reward_dict_the_key_for_evaluation_is_reported_and_all_are_kept(evaluate) -> None:
    output = evaluate(
        ScriptedEngine(), custom_rm_path="rollout_cases.two_numbers", reward_key="score", eval_reward_key="format"
    )
    assert [s.reward for s in output.generations] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert all(s.metadata["rewards"]["score"] == s.response_length for s in output.generations)
    easy = [s.reward for s in output.generations if s.dataset == "easy"]
    assert output.metrics["easy/reward/format"] == sum(easy) / len(easy)
    assert "hard/reward/score" in output.metrics


def test_over_long_prompts_are_left_out_and_counted_and_a_set_without_any_prompt_is_an_error(
    evaluate, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"question": "w4 w5 w6", "truth": "1"}\n{"question": "w4", "truth": "1"}\n')
    output = evaluate(ScriptedEngine(), eval_prompt_data=[str(path)], eval_max_prompt_len=2)
    assert output.metrics["long/skipped_over_long_prompt"] == 1
    assert len(output.generations) == 1
    with pytest.raises(DataError, match=r"No prompt of the evaluation set long .*over long prompt"):
        evaluate(ScriptedEngine(), eval_prompt_data=[str(path) + "@[0:1]"], eval_max_context_len=3)


def test_an_engine_that_fails_ends_the_evaluation_with_its_own_error(evaluate) -> None:
    class Broken(ScriptedEngine):
        async def generate(self, *args: Any, **kwargs: Any) -> Any:
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        evaluate(Broken())
