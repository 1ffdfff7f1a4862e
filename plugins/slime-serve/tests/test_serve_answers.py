"""What `slime serve` answers to the official client: texts, streams, log-probs, token ids."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from serve_fixtures import NAME, Served
from transformers import AutoModelForCausalLM

from slime_core.arguments.groups.data import DataArguments
from slime_core.data.ends import known_ends
from slime_core.data.prompts import read_prompt
from slime_core.data.samples import Columns, sample_from_row
from slime_serve.prompts import read_conversation

QUESTION: list[Any] = [{"role": "user", "content": "What is 3 + 4? Answer with 你好 and 🦋."}]
PROMPT = list(range(30, 60))


def log_probs(folder: Path, prompt: list[int], tokens: list[int], temperature: float) -> list[float]:
    """What transformers computes in float32, as a trainer does."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def test_the_models_are_listed_under_the_name_that_requests_use(served: Served) -> None:
    assert [model.id for model in served.openai.models.list()] == [NAME]
    assert served.openai.models.retrieve(NAME).id == NAME
    assert served.http.get("/health").json()["status"] == "ok"


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 3}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALLED: list[Any] = [
    *QUESTION,
    {"role": "assistant", "content": "", "reasoning_content": "I add.", "tool_calls": [CALL]},
    {"role": "tool", "content": [{"type": "text", "text": "7"}]},
]
READ = {
    "its own template": (None, QUESTION, None),
    "content as parts": (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}|{% endfor %}{% endfor %}",
        QUESTION,
        None,
    ),
    "arguments as text, thoughts in the content": (
        "{{ tools }}{# </think> #}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ '<' + c.function.arguments + '>' }}{% endfor %}|{% endfor %}",
        CALLED,
        [TOOL],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_conversation_is_read_as_the_prompt_of_a_rollout_is(served: Served, name: str) -> None:
    template, messages, tools = READ[name]
    tokenizer = copy.copy(served.model.tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    row = {"messages": copy.deepcopy(messages), "tools": tools}
    sample = sample_from_row(Columns("messages", tool_key="tools"), row, "rows.jsonl:1")
    asked = read_prompt(sample, tokenizer, DataArguments(prompt_data=["rows.jsonl"]), render=True)
    assert read_conversation(tokenizer, messages, tools).tokens == asked.tokens


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_log_probs_of_a_chat_are_those_of_the_trainer(served: Served, tiny_model: Path, temperature: float) -> None:
    answer = served.openai.chat.completions.create(
        model=NAME, messages=QUESTION, max_tokens=12, temperature=temperature, seed=5, logprobs=True, top_logprobs=3,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    extra: Any = answer.model_extra
    choice: Any = answer.choices[0]
    prompt, tokens = extra["prompt_token_ids"], choice.model_extra["token_ids"]
    assert prompt == read_conversation(served.model.tokenizer, QUESTION).tokens
    assert len(tokens) == 12
    said = choice.logprobs.content
    assert [entry.logprob for entry in said] == pytest.approx(
        log_probs(tiny_model, prompt, tokens, temperature or 1.0), abs=1e-5
    )
    assert b"".join(bytes(entry.bytes) for entry in said).decode(errors="replace") == served.model.decode(tokens, True)
    assert all(len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob >= entry.logprob for entry in said)
    if not temperature:
        assert all(entry.top_logprobs[0].token == entry.token for entry in said)
    assert choice.finish_reason == "length"
    assert choice.message.content == served.model.decode(tokens)
    usage: Any = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 12, len(prompt) + 12)


def test_log_probs_of_a_prompt_and_its_completion_are_those_of_the_trainer(served: Served, tiny_model: Path) -> None:
    answer = served.openai.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=8, echo=True, logprobs=2, temperature=0.5, seed=1, extra_body={"return_token_ids": True}
    )  # fmt: skip
    choice: Any = answer.choices[0]
    tokens = choice.model_extra["token_ids"]
    assert choice.model_extra["prompt_token_ids"] == PROMPT
    said = choice.logprobs
    assert said.token_logprobs[0] is None
    assert said.top_logprobs[0] is None
    assert said.token_logprobs[1:] == pytest.approx(
        log_probs(tiny_model, PROMPT[:1], [*PROMPT[1:], *tokens], 0.5), abs=1e-5
    )
    assert all(len(entry) == 2 for entry in said.top_logprobs[1:])
    assert choice.text == served.model.decode(PROMPT, True) + served.model.decode(tokens)
    places = said.text_offset
    whole = "".join(said.tokens)
    assert len(places) == len(PROMPT) + len(tokens) == len(said.tokens)
    if "bytes:" not in whole:
        assert all(choice.text[place:].startswith(token) for place, token in zip(places, said.tokens, strict=True))
    only = served.openai.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=0, echo=True, logprobs=0, temperature=0.5
    )
    scored: Any = only.choices[0].logprobs
    assert scored.token_logprobs == said.token_logprobs[: len(PROMPT)]
    assert (only.choices[0].text, only.choices[0].finish_reason) == (served.model.decode(PROMPT, True), "length")


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_gives_what_one_object_gives(served: Served, n: int) -> None:
    asked: dict[str, Any] = {
        "model": NAME, "messages": QUESTION, "n": n, "max_tokens": 20, "seed": 11, "logprobs": True, "extra_body": {"return_token_ids": True},
    }  # fmt: skip
    whole = served.openai.chat.completions.create(**asked)
    text, tokens, said, reasons = [[""] * n for _ in range(4)]
    tokens, said = [[] for _ in range(n)], [[] for _ in range(n)]  # type: ignore[assignment]
    usages = []
    chunks = 0
    for chunk in served.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            extra: Any = choice.model_extra
            text[choice.index] += choice.delta.content or ""
            tokens[choice.index] += extra.get("token_ids", [])
            said[choice.index] += choice.logprobs.content if choice.logprobs else []  # type: ignore[operator]
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            chunks += 1
    assert text == [choice.message.content for choice in whole.choices]
    assert tokens == [choice.model_extra["token_ids"] for choice in whole.choices]  # type: ignore[index]
    assert said == [choice.logprobs.content for choice in whole.choices]  # type: ignore[union-attr]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usages[-1] == whole.usage
    assert set(usages[:-1]) == {None}
    assert chunks > 2 * n
    assert len(set(text)) == n  # answers differ from each other
    assert all("\ufffd" not in piece or "\ufffd" in whole.choices[0].message.content for piece in text)  # type: ignore[operator]


def test_a_seed_repeats_an_answer_and_another_one_gives_another(served: Served) -> None:
    def asked(seed: int | None) -> str:
        return served.openai.completions.create(model=NAME, prompt="Once", max_tokens=12, seed=seed).choices[0].text

    assert asked(1) == asked(1) != asked(2)
    assert asked(None) != asked(None)
    greedy = [served.post("/v1/completions", {"prompt": "Once", "temperature": 0}).json()["choices"] for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_a_temperature_that_is_greedy_in_sglang_is_answered_and_scored_as_0(served: Served) -> None:
    def answered(temperature: float) -> Any:
        body = {"prompt": "Once", "max_tokens": 4, "temperature": temperature, "echo": True, "logprobs": 2}
        return served.post("/v1/completions", body).json()["choices"]

    assert answered(1e-9) == answered(0)


def test_several_prompts_are_completed_together(served: Served) -> None:
    texts = ["One", "Two, and more"]
    answer = served.openai.completions.create(model=NAME, prompt=texts, n=2, max_tokens=4, temperature=0, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(texts[number // 2]) for number, choice in enumerate(answer.choices)] == [True] * 4
    by_ids = [served.model.tokenizer(text)["input_ids"] for text in texts]
    same = served.openai.completions.create(model=NAME, prompt=by_ids, n=2, max_tokens=4, temperature=0, echo=True)
    assert [choice.text for choice in same.choices] == [choice.text for choice in answer.choices]


def test_an_answer_ends_before_its_stop_string_also_in_a_stream(served: Served) -> None:
    free = (
        served.openai.completions.create(model=NAME, prompt="Once", max_tokens=30, temperature=0, seed=0)
        .choices[0]
        .text
    )
    middle = len(free) // 2
    stop = free[middle : middle + 5]  # which begins and ends inside of tokens
    asked: dict[str, Any] = {
        "model": NAME,
        "prompt": "Once",
        "max_tokens": 30,
        "temperature": 0,
        "stop": ["never to be met", stop],
    }
    whole = served.openai.completions.create(**asked).choices[0]
    assert (whole.text, whole.finish_reason) == (free[: free.index(stop)], "stop")
    chunks = list(served.openai.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_content_may_be_a_list_of_texts_and_tools_reach_the_template(served: Served) -> None:
    parts: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "that?"}]}
    ]
    plain: list[Any] = [{"role": "user", "content": "What is that?"}]
    ids = [
        served.post("/v1/chat/completions", {"messages": m, "max_tokens": 1, "return_token_ids": True}).json()[
            "prompt_token_ids"
        ]
        for m in (parts, plain)
    ]
    assert ids[0] == ids[1]
    tokenizer = served.model.tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = (
        "{{ tools | tojson if tools else 'none' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    try:
        tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
        asked = {"messages": plain, "max_tokens": 1, "return_token_ids": True, "tools": [tool]}
        shown = [
            tokenizer.decode(served.post("/v1/chat/completions", {**asked, **more}).json()["prompt_token_ids"])
            for more in ({}, {"tool_choice": "none"})
        ]
    finally:
        tokenizer.chat_template = before
    assert '"add"' in shown[0]
    assert shown[1].startswith("none")


def test_answers_with_tools_keep_the_special_tokens_that_may_mark_a_call(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = served.model.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}")
    ends = {str(tokenizer.decode([token])) for token in known_ends(served.model.folder, tokenizer)}
    seen = set()
    for seed, endless, stream in itertools.product(range(2), (True, False), (True, False)):
        asked = {
            "messages": QUESTION,
            "temperature": 2,
            "seed": seed,
            "max_tokens": 100,
            "ignore_eos": endless,
            "return_token_ids": True,
        }
        texts = []
        for more in ({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}, {}):
            answer = served.post("/v1/chat/completions", {**asked, **more, "stream": stream})
            text, ids = whole(answer.text) if stream else whole(f"data: {answer.text}", "message")
            texts.append((text, str(tokenizer.decode(ids)), tokenizer.decode(ids, skip_special_tokens=True), ids))
        shown, full, plain, _ = texts[0]
        end = next((end for end in ends if not endless and full.endswith(end)), "")
        assert shown == full.removesuffix(end)
        assert all(text == plain for text, _, plain, _ in texts[1:])
        seen |= {shown != plain, bool(end)}
    assert seen == {True, False}


def whole(lines: str, part: str = "delta") -> tuple[str, list[int]]:
    """Text and tokens of the answer in the lines of a stream."""
    objects = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
    choices = [choice for found in objects for choice in found["choices"]]
    tokens = [token for choice in choices for token in choice.get("token_ids") or []]
    return "".join(choice[part].get("content") or "" for choice in choices), tokens


def test_the_last_line_of_a_stream_says_that_it_is_whole(served: Served) -> None:
    response = served.post("/v1/completions", {"prompt": "x", "max_tokens": 3, "stream": True})
    lines = [line for line in response.text.splitlines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])
