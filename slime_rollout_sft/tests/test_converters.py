"""Converters: what each format becomes, and what is said of rows that do not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_rollout_sft import converters


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_openhermes_turns_become_messages() -> None:
    row = {
        "id": None,
        "conversations": [
            {"from": "system", "value": "Be brief.", "weight": None},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
        ],
        "source": "somewhere",
    }
    expected = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello")]
    assert converters.openhermes(row) == {"messages": expected, "tools": None}


def test_sharegpt_tool_dialogs_become_tool_calls_and_tool_results() -> None:
    row = {
        "system": "Use tools.",
        "tools": json.dumps([{"name": "area", "parameters": {"type": "object"}}]),
        "conversations": [
            {"from": "human", "value": "Area?"},
            {"from": "function_call", "value": '{"name": "area", "arguments": {"sides": [5, 3]}}'},
            {"from": "observation", "value": '{"area": 15}'},
            {"from": "gpt", "value": "15", "weight": 0},
        ],
    }
    call = {"type": "function", "function": {"name": "area", "arguments": {"sides": [5, 3]}}}
    assert converters.openhermes(row) == {
        "messages": [
            {"role": "system", "content": "Use tools."},
            user("Area?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": '{"area": 15}'},
            {**assistant("15"), "step_loss_mask": 0},
        ],
        "tools": [{"type": "function", "function": {"name": "area", "parameters": {"type": "object"}}}],
    }


def test_a_system_turn_wins_over_the_system_field() -> None:
    row = {"system": "field", "conversations": [{"from": "system", "value": "turn"}, {"from": "human", "value": "x"}]}
    assert [m["content"] for m in converters.openhermes(row)["messages"]] == ["turn", "x"]


def test_alpaca_joins_instruction_and_input_and_keeps_the_history() -> None:
    assert converters.alpaca({"instruction": "Add", "input": "1 2", "output": "3"}) == {
        "messages": [user("Add\n1 2"), assistant("3")]
    }
    row = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
    expected = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]
    assert converters.alpaca(row) == {"messages": expected}


def test_gsm8k_keeps_the_solution_and_makes_the_number_the_label() -> None:
    answer = "48 / 2 = <<48/2=24>>24\n#### 1,072"
    assert converters.gsm8k({"question": "How many?", "answer": answer}) == {
        "messages": [user("How many?"), assistant(answer)],
        "label": "1072",
    }


def test_gsm8k_socratic_becomes_one_exchange_per_sub_question() -> None:
    answer = "How many in May? ** 48/2 = 24\nHow many in all? ** 48+24 = 72\n#### 72"
    assert converters.gsm8k_multiturn({"question": "Natalia sold 48.", "answer": answer}) == {
        "messages": [
            user("Natalia sold 48.\nHow many in May?"),
            assistant("48/2 = 24"),
            user("How many in all?"),
            assistant("48+24 = 72\n#### 72"),
        ],
        "label": "72",
    }


def test_verl_rows_take_the_response_as_last_message_and_the_ground_truth_as_label() -> None:
    row = {
        "prompt": [user("Q1"), assistant("A1"), user("Q2")],
        "response": "A2",
        "data_source": "multiturn_sft",
        "reward_model": {"style": "rule", "ground_truth": "42"},
    }
    assert converters.verl(row) == {
        "messages": [user("Q1"), {**assistant("A1"), "step_loss_mask": 0}, user("Q2"), assistant("A2")],
        "label": "42",
        "metadata": {"data_source": "multiturn_sft"},
    }
    assert converters.verl({"prompt": "Q", "response": "A"})["messages"] == [user("Q"), assistant("A")]
    assert converters.verl({"prompt": [user("Q")], "reward_model": {"ground_truth": "1"}})["messages"] == [user("Q")]


def test_messages_are_checked_and_other_columns_kept() -> None:
    row = {"messages": [{**user("a"), "name": None}], "label": 3}
    assert converters.messages(row) == {"messages": [user("a")], "label": 3}


BAD = [
    ("openhermes", {"text": "x"}, "the row has no 'conversations', expected a list; its keys are 'text'"),
    (
        "openhermes",
        {"conversations": [{"from": "alien", "value": "x"}]},
        "turn 1 is from 'alien'; expected one of human, user, gpt, assistant, system, tool, observation, function_call",
    ),
    (
        "openhermes",
        {"conversations": [{"from": "human", "value": None}]},
        "turn 1 of 'conversations' is {\"from\": \"human\", \"value\": null}, expected {'from', 'value'} with text",
    ),
    (
        "openhermes",
        {"conversations": [{"from": "gpt", "value": "x", "weight": 0.5}]},
        "turn 1 has weight 0.5; expected 0 (not trained) or 1",
    ),
    (
        "openhermes",
        {"conversations": [{"from": "function_call", "value": "f(x)"}]},
        'turn 1 is a function_call, but: "f(x)" is no valid JSON (not valid JSON at column 1: Expecting value)',
    ),
    (
        "openhermes",
        {"conversations": [{"from": "function_call", "value": "{}"}]},
        "turn 1 is a function_call without a name; expected {'name', 'arguments'}",
    ),
    ("openhermes", {"conversations": [], "tools": "[1]"}, "a tool definition is 1; expected an object"),
    (
        "openhermes",
        {"conversations": [], "tools": "{"},
        'the tools: "{" is no valid JSON (not valid JSON at column 2: Expecting property name enclosed in double quotes)',
    ),
    ("alpaca", {"instruction": "x"}, "the row has no 'output', expected a text; its keys are 'instruction'"),
    (
        "alpaca",
        {"instruction": "x", "output": "y", "history": [["a"]]},
        "'history' holds [\"a\"], expected pairs of question and answer",
    ),
    ("gsm8k", {"question": "x", "answer": "y"}, "'answer' does not end in a line `#### number`"),
    (
        "gsm8k_multiturn",
        {"question": "x", "answer": "1 + 1 = 2\n#### 2"},
        "'answer' is not made of lines `sub-question ** step`; multi-turn needs GSM8K's socratic version, "
        "convert the main version with gsm8k",
    ),
    (
        "verl",
        {"prompt": [user("x")]},
        "the row has neither 'response' (to learn from) nor 'reward_model.ground_truth' (to compare with)",
    ),
    (
        "verl",
        {"prompt": 3, "response": "x"},
        "the row has 3 as 'prompt', expected a list; its keys are 'prompt', 'response'",
    ),
    ("messages", {"messages": "x"}, "the row has \"x\" as 'messages', expected a list; its keys are 'messages'"),
    ("messages", {"messages": [{"role": "user"}]}, "message 1 (user) has neither content nor tool_calls"),
]


@pytest.mark.parametrize(("converter", "row", "message"), BAD)
def test_a_row_that_does_not_fit_is_refused_with_the_reason(converter: str, row: dict, message: str) -> None:
    with pytest.raises(DataError) as caught:
        getattr(converters, converter)(row)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("openhermes", converters.openhermes),
        ("sharegpt", converters.openhermes),
        ("alpaca", converters.alpaca),
        ("gsm8k", converters.gsm8k),
        ("gsm8k-multiturn", converters.gsm8k_multiturn),
        ("verl", converters.verl),
        ("messages", converters.messages),
    ],
)
def test_every_converter_is_selected_by_name(name: str, function: Any) -> None:
    assert Plugins().select("converter", name).target is function


def test_what_a_call_says_besides_is_kept_where_it_joins_the_text_before_it() -> None:
    call = {"from": "function_call", "value": '{"name": "weather", "arguments": {}}', "reasoning_content": "I look."}
    turns = [{"from": "human", "value": "Weather?"}, {"from": "gpt", "value": "A moment."}, call]
    joined = converters.openhermes({"conversations": turns})["messages"][1]
    assert joined["content"] == "A moment."
    assert joined["reasoning_content"] == "I look."
    turns[1]["reasoning_content"] = "I wait."
    with pytest.raises(DataError, match="turns 2 and 3 are one turn of the assistant, but each has its own reasoning"):
        converters.openhermes({"conversations": turns})
