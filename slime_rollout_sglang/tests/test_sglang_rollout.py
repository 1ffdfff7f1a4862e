"""The RL rollout: prompts become tokens, tokens become scored groups, and the same seed gives the same samples."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
import rollout_cases
from rollout_cases import END, ScriptedEngine, rollout

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.data import GlobalDataSource
from slime_core.errors import ArgumentError, DataError, SampleError
from slime_core.rollout.boxed import last_box
from slime_core.rollout.components import choose_rollout_components
from slime_core.sample import Sample, Status
from slime_core.testing import check_distribution
from slime_rollout_sglang.partial import fresh
from slime_rollout_sglang.rollout import generate_rollout


def test_slimes_name_of_the_rollout_selects_this_one_and_is_the_default(arguments, plugins) -> None:
    assert plugins.select("rollout", arguments().rollout_function_path).name == "rl"


def test_every_sample_has_prompt_and_response_tokens_log_probs_versions_and_a_reward(arguments, plugins) -> None:
    output = rollout(arguments(), plugins, ScriptedEngine(version=7))
    assert [[s.index for s in group] for group in output.groups] == [[0, 1], [2, 3], [4, 5]]
    for number, group in enumerate(output.groups):
        for sample in group:
            r = sample.response_length
            assert sample.tokens[:-r] == [4, 5, 6 + number]
            assert sample.tokens[-1] == END
            assert sample.status is Status.COMPLETED
            assert sample.rollout_log_probs == [-0.5] * r
            assert sample.weight_versions == [7] * r
            assert sample.reward == float(sample.index % 2 == 0)
            assert sample.response == " ".join(f"w{t}" for t in sample.tokens[-r:-1])


def test_all_samples_are_generated_at_the_same_time_with_names_and_seeds_of_their_own(arguments, plugins) -> None:
    engine = ScriptedEngine()
    rollout(arguments(), plugins, engine)
    assert engine.most_running == 6
    assert len({name for _, _, name in engine.requests}) == 6
    assert len({params["seed"] for _, params, _ in engine.requests}) == 6


def test_the_same_seed_gives_the_same_samples_whatever_the_speed_of_rewards_and_another_seed_others(
    arguments, plugins
) -> None:
    outputs = []
    for delays, seed in (({}, 42), ({0: 0.05, 1: 0.02}, 42), ({}, 43)):
        rollout_cases.state.delays = delays
        outputs.append([s.to_dict() for s in rollout(arguments(rollout_seed=seed), plugins).samples])
    assert outputs[0] == outputs[1]
    assert [s["tokens"] for s in outputs[0]] != [s["tokens"] for s in outputs[2]]


def test_a_response_at_the_length_limit_is_truncated_whichever_limit_it_is(arguments, plugins) -> None:
    def endless(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [10] * 1000

    for limits, length in (({"rollout_max_response_len": 5}, 5), ({"rollout_max_context_len": 9}, 6)):
        output = rollout(arguments(**limits), plugins, ScriptedEngine(endless))
        assert {(s.response_length, s.status) for s in output.samples} == {(length, Status.TRUNCATED)}
        assert output.metrics["truncated_ratio"] == 1.0


def test_sampling_options_reach_the_engine(arguments, plugins) -> None:
    engine = ScriptedEngine()
    options = {"rollout_temperature": 0.8, "rollout_top_p": 0.9, "rollout_top_k": 5}
    rollout(arguments(rollout_stop=["\n"], rollout_stop_token_ids=[END], **options), plugins, engine)
    for _, params, _ in engine.requests:
        assert params.pop("seed") >= 0
        assert params == {
            "temperature": 0.8,
            "top_p": 0.9,
            "top_k": 5,
            "stop": ["\n"],
            "stop_token_ids": [END],
            "max_new_tokens": 1024,
        }


CHAT = {"input": [{"role": "user", "content": "w7"}], "label": None, "tools": [{"name": "a"}, {"name": "b"}]}


def test_messages_are_rendered_with_tools_generation_prompt_and_the_given_template_arguments(
    arguments, plugins, word_checkpoint
) -> None:
    from transformers import AutoTokenizer

    args = arguments([CHAT], apply_chat_template=True, apply_chat_template_kwargs={"quiet": True})
    rendered = "<user> w7 <end> 2 <assistant> w39"
    expected = AutoTokenizer.from_pretrained(word_checkpoint)(rendered, add_special_tokens=False)["input_ids"]
    for sample in rollout(args, plugins).samples:
        assert sample.tokens[: -sample.response_length] == expected


def test_text_is_one_message_of_the_user_where_the_template_is_asked_for(arguments, plugins) -> None:
    message = {"input": [{"role": "user", "content": "w7"}]}
    expected = [sample.tokens for sample in rollout(arguments([message], apply_chat_template=True), plugins).samples]
    output = rollout(arguments([{"input": "w7"}], apply_chat_template=True), plugins)
    assert [sample.tokens for sample in output.samples] == expected
    assert {(sample.prompt, sample.asked) for sample in output.samples} == {("<user> w7 <end> <assistant> ", "w7")}
    plain = rollout(arguments([{"input": "w7"}]), plugins).samples[0]
    assert plain.tokens[: -plain.response_length] == [7]


def test_hooks_find_the_text_that_the_model_reads_in_training_and_in_evaluations(arguments, plugins, tmp_path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(CHAT))
    template = {"apply_chat_template": True, "apply_chat_template_kwargs": {"quiet": True}}
    args = arguments([CHAT], **template, custom_rm_path="rollout_cases.reads_on", eval_prompt_data=["held", str(held)])
    text = "<user> w7 <end> 2 <assistant> w39 "
    for samples in (rollout(args, plugins).samples, rollout(args, plugins, evaluation=True).generations):
        assert {sample.reward for sample in samples} == {1.0}, "prompt + response is not what the tokens say"
        assert {sample.prompt for sample in samples} == {text}
        assert all(sample.asked == CHAT["input"] and Sample.from_dict(sample.to_dict()) == sample for sample in samples)


def test_a_prompt_is_rendered_once_also_when_a_hook_takes_its_tokens_away(arguments, plugins) -> None:
    args = arguments([CHAT], apply_chat_template=True)
    source = GlobalDataSource(args)
    first = rollout(args, plugins, source=source).groups
    source.add_samples([[fresh(replace(s, tokens=[], response_length=0)) for s in group] for group in first])
    again = rollout(args, plugins, source=source).groups
    assert [[s.prompt for s in group] for group in again] == [[s.prompt for s in group] for group in first]
    assert {tuple(s.tokens[: -s.response_length]) for group in [*first, *again] for s in group} == {(1, 7, 3, 0, 2)}
    assert all(s.asked == CHAT["input"] for group in again for s in group)


def test_messages_without_the_flag_are_an_error_that_names_the_row_and_the_flag(arguments, plugins) -> None:
    with pytest.raises(ArgumentError, match=r"prompts.jsonl:1: .*--apply-chat-template"):
        rollout(arguments([CHAT]), plugins)


def test_over_long_prompts_are_replaced_and_counted(arguments, plugins) -> None:
    rows = [{"input": " ".join(["w4"] * n)} for n in (2, 9, 3, 4, 9)]
    for limit in ({"rollout_max_prompt_len": 4}, {"rollout_max_context_len": 5}):
        output = rollout(arguments(rows, **limit), plugins)
        assert [len(group[0].tokens) - group[0].response_length for group in output.groups] == [2, 3, 4]
        assert output.metrics["skipped_over_long_prompt"] == 1


def test_data_in_which_every_prompt_is_over_long_is_an_error(arguments, plugins) -> None:
    with pytest.raises(DataError, match=r"No prompt of a whole epoch .* skipped over long prompt"):
        rollout(arguments(4, rollout_max_prompt_len=2), plugins)


def test_messages_that_the_template_refuses_follow_the_policy_for_malformed_rows(arguments, plugins) -> None:
    rows = [{"input": [{"role": "user", "content": "no lists"}]}, *([CHAT] * 3)]
    from slime_core.data.tokenizer import load_tokenizer

    args = arguments(rows, apply_chat_template=True)
    tokenizer = load_tokenizer(args.hf_checkpoint)
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('not this') if 'no lists' in messages[0].content|string }}" + template
    try:
        with pytest.raises(DataError, match=r"prompts.jsonl:1: the chat template refuses .*: not this"):
            rollout(args, plugins)
        args = args.model_copy(update={"malformed_row": "skip"})
        assert rollout(args, plugins).metrics["skipped_malformed"] == 1
    finally:
        tokenizer.chat_template = template


def test_prompts_of_which_the_template_drops_text_are_counted_and_the_first_is_named(
    arguments, plugins, caplog, monkeypatch
) -> None:
    from slime_core.data.tokenizer import load_tokenizer

    rows = [{"input": [{"role": "system", "content": "w8"}, *CHAT["input"]]}] * 3
    args = arguments(rows, apply_chat_template=True)
    template = "{% for m in messages if m.role == 'user' %}<user> {{ m.content }} <end> {% endfor %}<assistant> "
    monkeypatch.setattr(load_tokenizer(args.hf_checkpoint), "chat_template", template)
    assert rollout(args, plugins).metrics["with_dropped_text"] == 3
    (told,) = [r.getMessage() for r in caplog.records if "drops" in r.getMessage()]
    assert "prompts.jsonl:1: the chat template drops the content of message 1 (system): 'w8'." in told


def test_without_an_engine_the_error_says_how_to_get_one(arguments, plugins) -> None:
    args = arguments()
    components = choose_rollout_components(args, plugins)
    with pytest.raises(ArgumentError, match="--rollout-engine local"):
        generate_rollout(args, 0, GlobalDataSource(args), components=components, plugins=plugins)


def test_over_sampling_less_than_a_batch_is_an_error(arguments, plugins) -> None:
    with pytest.raises(ArgumentError, match=r"--over-sampling-batch-size is 2; expected at least .* 3"):
        rollout(arguments(over_sampling_batch_size=2), plugins)


def test_metrics_are_those_of_the_samples(arguments, plugins) -> None:
    rollout_cases.state.answers = {0: [1.0, 0.0], 1: [1.0], 2: [0.0]}
    output = rollout(arguments(), plugins, rollout_id=1)
    lengths = [s.response_length for s in output.samples]
    m = output.metrics
    assert (m["response_len/min"], m["response_len/max"]) == (min(lengths), max(lengths))
    assert m["response_len/mean"] == pytest.approx(sum(lengths) / 6)
    assert (m["raw_reward"], m["reward_std"]) == (0.5, 0.5)
    assert m["zero_std/share"] == pytest.approx(2 / 3)
    assert (m["zero_std/count_0.0"], m["zero_std/count_1.0"]) == (1, 1)
    assert (m["staleness/max"], m["sampling/rounds"], m["sampling/groups_started"]) == (0, 1, 3)
    assert m["generated_tokens"] == m["returned_tokens"] == sum(lengths)


def test_a_group_reward_scores_each_group_once(arguments, plugins) -> None:
    output = rollout(arguments(custom_rm_path="rollout_cases.ranks"), plugins)
    assert rollout_cases.calls["group reward"] == 3
    for group in output.groups:
        assert sorted(s.reward for s in group) == [0.0, 1.0]


def test_a_plain_function_is_a_reward_too(arguments, plugins) -> None:
    def label_word(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [4 + prompt[-1] - 6, END] if prompt[-1] > 6 else [4, END]

    rows = [{"input": "w9", "label": "w7"}, {"input": "w10", "label": "w9"}, {"input": "w11", "label": "w9"}]
    args = arguments(rows, custom_rm_path="rollout_cases.echo", label_key="label")
    assert [g[0].reward for g in rollout(args, plugins, ScriptedEngine(label_word)).groups] == [1.0, 0.0, 1.0]


def test_of_a_reward_dict_one_number_is_chosen_and_all_are_kept(arguments, plugins) -> None:
    args = arguments(custom_rm_path="rollout_cases.two_numbers", reward_key="format")
    output = rollout(args, plugins)
    assert output.metrics["raw_reward"] == 0.5
    assert {type(s.reward) for s in output.samples} == {dict}
    with pytest.raises(SampleError, match="the keys score, format; name one of them with --reward-key"):
        rollout(arguments(custom_rm_path="rollout_cases.two_numbers"), plugins)


def test_without_a_reward_the_error_says_how_to_choose_one(arguments, plugins) -> None:
    with pytest.raises(ArgumentError, match="--rm-type or --custom-rm-path"):
        rollout(arguments(custom_rm_path=None), plugins)


def test_a_row_chooses_its_own_reward_and_boxed_scores_the_box_alone(arguments, plugins) -> None:
    class Boxing(ScriptedEngine):
        async def generate(self, input_ids: Any, sampling_params: Any, request_id: Any = None) -> Any:
            done = await super().generate(input_ids, sampling_params, request_id)
            return replace(done, text=r"first \boxed{1}, no: \boxed{\frac{1}{2}} it is")

    rows = [
        {"input": "w4", "label": r"\frac{1}{2}"},
        {"input": "w5", "label": r"\frac{1}{2}", "metadata": {"rm_type": "exact_match"}},
        {"input": "w6", "label": "1"},
    ]
    args = arguments(rows, custom_rm_path=None, rm_type="boxed_rollout_cases.echo", label_key="label")
    output = rollout(args, plugins, Boxing())
    assert [group[0].reward for group in output.groups] == [1.0, 0.0, 0.0]
    assert all("first" in sample.response for sample in output.samples)  # the sample itself stays as it is


def test_the_last_box_is_found_with_the_braces_inside_it() -> None:
    box = last_box(r"\boxed{1} and \boxed{\frac{a}{b}}.")
    assert (box.start, box.content) == (14, r"\frac{a}{b}")
    assert last_box("no box") is None
    assert last_box(r"\boxed{1} then \boxed{cut of").content is None


def test_sample_filter_and_all_samples_hooks_see_what_their_contracts_say(arguments, plugins) -> None:
    rollout_cases.state.answers = {1: [0.0]}
    args = arguments(
        rollout_sample_filter_path="rollout_cases.remove_odd",
        rollout_all_samples_process_path="rollout_cases.watch",
        dynamic_sampling_filter_path="check_reward_nonzero_std",
    )
    output = rollout(args, plugins)
    assert [s.remove_sample for s in output.samples] == [False, True] * 3
    assert output.metrics["removed_samples"] == 3
    assert [2, 3] in rollout_cases.state.seen  # filtered out, and seen all the same
    assert 2 not in [s.index for s in output.samples]


def test_a_rollout_can_be_made_on_a_thread(arguments, plugins) -> None:
    args = arguments()
    output = asyncio.run(asyncio.to_thread(rollout, args, plugins))  # where the driver has an event loop of its own
    assert len(output.groups) == 3


def test_options_are_read_from_the_command_line(plugins) -> None:
    def read(*words: str) -> Any:
        start = ["--hf-checkpoint", "m", "--prompt-data", "d", "--num-rollout", "1", "--rollout-batch-size", "32"]
        return resolve(Namespace(plugins), [*start, *words], env={}).args

    args = read("--over-sampling-batch-size", "64", "--partial-rollout", "--rollout-stop-token-ids", "5", "7")
    assert (args.over_sampling_batch_size, args.partial_rollout, args.rollout_stop_token_ids) == (64, True, [5, 7])
    args = read("--apply-chat-template-kwargs", '{"enable_thinking": false}')
    assert args.apply_chat_template_kwargs == {"enable_thinking": False}
    for wrong in (["--apply-chat-template-kwargs", "{not json"], ["--rollout-top-k", "0"], ["--eval-top-k", "0"]):
        with pytest.raises(ArgumentError, match=wrong[0]):
            read(*wrong)


def test_everything_that_this_distribution_provides_keeps_its_contract(plugins) -> None:
    check_distribution(
        "slime-rollout-sglang", options=["--apply-chat-template", "--custom-rm-path", "rollout_cases.length_reward"]
    )
