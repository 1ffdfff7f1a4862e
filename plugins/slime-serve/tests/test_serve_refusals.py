"""What `slime serve` refuses: always with a status of 4xx, OpenAI's shape of errors, and what was given and expected."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from serve_fixtures import NAME, Served

from slime_serve.requests import NEUTRAL, ChatRequest, CompletionRequest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def refused(response: Any) -> dict[str, Any]:
    """The error in a response, whose shape is checked."""
    body = response.json()
    assert 400 <= response.status_code < 500
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"].endswith((".", "?"))
    return dict(body["error"], status=response.status_code)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {}, "messages: it is required"),
    (CHAT, {"messages": []}, "expected a list of at least one message"),
    (CHAT, {"messages": "Hello"}, "messages is 'Hello'"),
    (CHAT, {"messages": [7]}, "Message 1 is 7"),
    (CHAT, {"messages": [{"content": "x"}]}, "Message 1 has the role"),
    (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, "unknown role 'boss'"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "neither content nor tool_calls"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "has the content 5"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "the model reads none"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "where text belongs"),
    (CHAT, {"messages": HELLO, "tools": [5]}, "tool"),
    (CHAT, {"messages": HELLO, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "'chat_template' is no variable"),
    (CHAT, {"messages": HELLO, "chat_template_kwargs": {"tokenize": True}}, "'tokenize' is no variable"),
    (CHAT, {"messages": HELLO, "stop": "x" * 257}, "at most 256 characters"),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice is supported as"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs goes with logprobs"),
    (CHAT, {"messages": HELLO, "logprobs": 2}, "logprobs is 2"),
    (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "less than or equal to 20"),
    (CHAT, {"messages": HELLO, "max_tokens": 0}, "expected at least 1"),
    (CHAT, {"messages": HELLO, "max_tokens": 2, "max_completion_tokens": 3}, "differ; give one"),
    (CHAT, {"messages": HELLO, "max_tokens": "5"}, "max_tokens is '5'"),
    (CHAT, {"messages": HELLO, "max_tokens": 100_000}, "context ends at 512"),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 600}]}, "no room for an answer"),
    (CHAT, {"messages": HELLO, "temperature": -1}, "temperature is -1"),
    (CHAT, {"messages": HELLO, "temperature": 2.5}, "less than or equal to 2"),
    (CHAT, {"messages": HELLO, "temperature": True}, "temperature is True"),
    (CHAT, {"messages": HELLO, "top_p": 0}, "top_p is 0"),
    (CHAT, {"messages": HELLO, "top_k": 0}, "top_k is 0"),
    (CHAT, {"messages": HELLO, "n": 0}, "n is 0"),
    (CHAT, {"messages": HELLO, "n": 129}, "n is 129"),
    (CHAT, {"messages": HELLO, "n": 65}, "takes 64 at a time"),
    (CHAT, {"messages": HELLO, "seed": 2**70}, "seed is"),
    (CHAT, {"messages": HELLO, "seed": 1.5}, "seed is 1.5"),
    (CHAT, {"messages": HELLO, "stop": ""}, "stop is ''"),
    (CHAT, {"messages": HELLO, "stop": ["a", ""]}, "stop[1] is ''"),
    (CHAT, {"messages": HELLO, "stop": ["a"] * 17}, "stop is"),
    (CHAT, {"messages": HELLO, "stream": "yes"}, "stream is 'yes'"),
    (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "goes with stream: true"),
    (CHAT, {"messages": HELLO, "stream": True, "stream_options": {"usage": True}}, "stream_options"),
    (CHAT, {"messages": HELLO, "temprature": 1}, "Did you mean 'temperature'?"),
    (CHAT, {"messages": HELLO, "presence_penalty": 0.5}, "presence_penalty is not supported: the engine changes no log-probs"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format is not supported"),
    (TEXT, {}, "prompt: it is required"),
    (TEXT, {"prompt": ""}, "Prompt 0 has no tokens"),
    (TEXT, {"prompt": []}, "prompt is []: expected a text or a list of token ids"),
    (TEXT, {"prompt": [[]]}, "none of them empty"),
    (TEXT, {"prompt": ["a", 5]}, "prompt is ['a', 5]: expected a text"),
    (TEXT, {"prompt": 5}, "prompt is 5: expected a text"),
    (TEXT, {"prompt": [[5], []]}, "prompt is"),
    (TEXT, {"prompt": [5, -1]}, "the token -1; the model knows 0 to"),
    (TEXT, {"prompt": [10**9]}, "the token 1000000000"),
    (TEXT, {"prompt": [True]}, "prompt is [True]: expected"),
    (TEXT, {"prompt": "x", "max_tokens": 0}, "echo: true"),
    (TEXT, {"prompt": "x", "logprobs": True}, "logprobs is True"),
    (TEXT, {"prompt": "x", "best_of": 3}, "best_of is not supported"),
    (TEXT, {"prompt": "x", "suffix": "y"}, "suffix is not supported"),
    (TEXT, {"prompt": ["x"] * 100, "n": 2}, "asks for 200 answers"),
    (TEXT, {"prompt": "x", "model": "gpt-4"}, "There is no model 'gpt-4'; this server has 'tiny'"),
    (TEXT, {"prompt": "x", "model": None}, "model is None"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_wrong_is_told_why(served: Served, stream: bool) -> None:
    bad = []
    for path, body, problem in WRONG:
        if stream and "goes with stream" in problem:
            continue
        response = served.post(path, {"stream": True, **body} if stream else body)
        error = refused(response)
        bad += [(body, error)] if problem not in error["message"] else []
    assert not bad
    assert served.service.room.taken == 0


def test_the_parameter_that_is_wrong_is_named(served: Served) -> None:
    assert refused(served.post(CHAT, {"messages": HELLO, "n": 0}))["param"] == "n"
    assert refused(served.post(CHAT, {"messages": HELLO, "stop": ["a", 5]}))["param"] == "stop[1]"
    unknown = refused(served.post(TEXT, {"prompt": "x", "model": "other"}))
    assert (unknown["status"], unknown["code"], unknown["param"]) == (404, "model_not_found", "model")
    long = refused(served.post(TEXT, {"prompt": "x", "max_tokens": 600}))
    assert long["code"] == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="top_p"):
        served.openai.completions.create(model=NAME, prompt="x", top_p=0)
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        served.openai.models.retrieve("a/b/c")


def test_a_parameter_without_effect_is_refused_unless_it_says_what_is_so_anyway(served: Served) -> None:
    for name, (values, _) in NEUTRAL.items():
        for value in (None, *values):
            assert served.post(TEXT, {"prompt": "x", "max_tokens": 1, name: value}).status_code == 200, (name, value)
        for value in ("something else", 7, [1], True if False in values else "x"):
            error = refused(served.post(TEXT, {"prompt": "x", "max_tokens": 1, name: value}))
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert not set(NEUTRAL) & {*ChatRequest.model_fields, *CompletionRequest.model_fields}


BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "no JSON"),
    (b"{", 400, "not valid JSON at column 2"),
    (b'{"model": "tiny", "prompt": "x"} rest', 400, "not valid JSON"),
    (b"[]", 400, "no JSON object"),
    (b'"text"', 400, "no JSON object"),
    (b'{"model": "tiny", "prompt": "\xff"}', 400, "not valid UTF-8 at byte 29"),
    (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "half of a surrogate pair"),
    (b"[" * 100_000, 400, "nested too deeply"),
    (b'{"model": "tiny", "prompt": "x", "metadata": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "nested too deeply"),
    (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "temperature is nan"),
    (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400, "cannot be read"),
    (b'{"model": "tiny", "prompt": "' + b"x" * (9 << 20) + b'"}', 413, "more than 8388608 bytes"),
]


def test_bodies_that_are_no_requests_are_told_why(served: Served) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    for content, status, problem in BODIES:
        response = served.http.post(TEXT, content=content, headers=headers)
        error = refused(response)
        assert (error["status"], problem in error["message"]) == (status, True), (content[:60], error)

    def pieces() -> Any:  # of a length that is not told before
        for _ in range(10):
            yield b" " * (1 << 20)

    assert refused(served.http.post(TEXT, content=pieces(), headers=headers))["status"] == 413
    body = json.dumps({"model": NAME, "prompt": "x"}).encode()
    assert refused(served.http.post(TEXT, content=body, headers={"content-type": "text/plain"}))["status"] == 415


def test_other_paths_methods_and_hosts_are_refused(served: Served) -> None:
    assert "/v1/chat/completions" in refused(served.http.get("/v1/embeddings"))["message"]
    assert refused(served.http.get(CHAT))["status"] == 405
    assert refused(served.http.options(CHAT))["status"] == 405
    assert refused(served.http.get("/v1/models", headers={"host": "evil.example"}))["code"] == "wrong_host"
    for host in ("127.evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]:80"):
        assert refused(served.http.get("/v1/models", headers={"host": host}))["code"] == "wrong_host"
    for host in ("localhost:1", "127.0.0.1", "127.1.2.3:9", "[::1]:80"):
        assert served.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_template_that_reads_no_system_message_is_told(served: Served) -> None:
    tokenizer = served.model.tokenizer
    before = tokenizer.chat_template
    asked = {"messages": [{"role": "system", "content": "Be brief."}, *HELLO], "max_tokens": 1}
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"
    try:
        for template, problem in (
            (refusing, "System role not supported"),
            ("{{ messages[-1].content }}", "drops the content of message 1 (system)"),
            (None, "no chat template"),
        ):
            tokenizer.chat_template = template
            assert problem in refused(served.post(CHAT, asked))["message"]
        tokenizer.chat_template = "{{ messages[-1].content }}"
        tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
        asked = {"messages": HELLO, "max_tokens": 1, "tools": tools}
        assert "shows no tools" in refused(served.post(CHAT, asked))["message"]
        assert served.post(CHAT, {**asked, "tool_choice": "none"}).status_code == 200
    finally:
        tokenizer.chat_template = before
