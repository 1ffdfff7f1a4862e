"""`slime chat`: a conversation in the terminal, one question, and what ends an answer."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_serve import chat
from slime_serve.generation_defaults import sampling_defaults
from slime_serve.model import ServedModel, open_model
from slime_serve.options import ChatOptions, read_command_line
from slime_serve.prompts import read_conversation
from slime_serve.terminal import shown

GREEDY = ["--rollout-temperature", "0", "--rollout-max-response-len", "8"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[ServedModel]:
    plugins = Plugins()
    opened = open_model(read_command_line([str(tiny_model)], "slime chat", "", ChatOptions, plugins).args, plugins)
    yield opened
    opened.close()


@pytest.fixture
def chatting(tiny_model: Path, model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`chatting(*lines, flags=…)`: run `slime chat` at a terminal where a person types these lines; an exception is raised there."""
    monkeypatch.setattr("slime_serve.model.open_model", lambda args, plugins: model)
    monkeypatch.setattr(model, "close", lambda: None)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def run(*lines: str | type[BaseException], flags: list[str] = GREEDY, words: tuple[str, ...] = ()) -> int:
        left = list(lines)

        def ask() -> str:
            line = left.pop(0) if left else EOFError
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr(chat, "ask", ask)
        return chat.main([str(tiny_model), *flags, *words], Plugins())

    return run


def answer(model: ServedModel, tokens: list[int], limit: int = 8) -> str:
    """The likeliest answer to a prompt."""

    async def ask() -> str:
        params = {"max_new_tokens": limit, "temperature": 0.0}
        return "".join([piece.text async for piece in model.answer(tokens, params)])

    return asyncio.run(ask())


def replies(model: ServedModel, *questions: str, system: str = "") -> list[str]:
    """The likeliest answers of a conversation, each to all that was said before."""
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    said = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        said.append(answer(model, read_conversation(model.tokenizer, messages).tokens))
        messages.append({"role": "assistant", "content": said[-1]})
    return said


def lines_of(answers: list[str]) -> str:
    return "".join(shown(text) + ("" if text.endswith("\n") else "\n") for text in answers)


def test_one_question_prints_its_answer_and_nothing_else(
    chatting: Callable[..., int], model: ServedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    assert chatting(words=("What is 3 + 4?",)) == 0
    out, err = capfd.readouterr()
    assert out == lines_of(replies(model, "What is 3 + 4?"))
    assert err == "(cut off after 8 tokens, see --rollout-max-response-len)\n"


def test_standard_input_is_one_question(
    chatting: Callable[..., int], model: ServedModel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    pipe("Two lines\nwith 你好\n".encode())
    assert chatting() == 0
    assert capfd.readouterr().out == lines_of(replies(model, "Two lines\nwith 你好"))
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("Two lines\nwith 你好\n")
    )  # in a notebook there are no bytes behind it
    assert chatting() == 0
    assert capfd.readouterr().out == lines_of(replies(model, "Two lines\nwith 你好"))
    for content, problem in ((b"\xff", "not valid UTF-8 at byte 0"), (b" \n", "The question is empty")):
        pipe(content)
        with pytest.raises(ArgumentError, match=problem):
            chatting()


def test_a_conversation_is_kept_and_begun_anew(
    chatting: Callable[..., int], model: ServedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        chatting(
            "One?",
            "",
            "Two?",
            "/system Be brief.",
            "Three?",
            "/reset",
            "Four?",
            "/system",
            "One?",
            "/help",
            "/rest",
            "/quit",
            "never",
        )
        == 0
    )
    out, err = capfd.readouterr()
    one, two = replies(model, "One?", "Two?")
    three, four = (replies(model, question, system="Be brief.")[0] for question in ("Three?", "Four?"))
    assert out == lines_of([one, two, three, four, one])
    assert "/system TEXT" in err
    assert "Did you mean '/reset'?" in err


def test_sampling_is_repeated_under_a_seed_and_differs_without(
    chatting: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str) -> str:
        chatting("One?", "One?", flags=["--rollout-max-response-len", "8", *flags])
        return capfd.readouterr().out

    assert said("--rollout-seed", "3") == said("--rollout-seed", "3") != said("--rollout-seed", "4")
    assert said() != said()


def test_ctrl_c_stops_an_answer_which_is_kept_and_twice_ends(
    chatting: Callable[..., int], model: ServedModel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def write(text: str) -> None:
        said.append(text)
        if len("".join(said[:-1])) == 0 < len(text):  # the first text of an answer
            signal.raise_signal(signal.SIGINT)

    prompts: list[list[int]] = []
    original = model.answer

    async def all_at_once(tokens: list[int], *rest: Any, **more: Any) -> AsyncIterator[Any]:
        """The whole answer is there before its first piece is shown, as with an engine that is faster than the terminal."""
        prompts.append(tokens)
        for piece in [piece async for piece in original(tokens, *rest, **more)]:
            yield piece

    monkeypatch.setattr(model, "answer", all_at_once)
    monkeypatch.setattr(chat, "write", write)
    flags = ["--rollout-temperature", "0", "--rollout-max-response-len", "300"]
    assert (
        chatting(
            "Go on.", "And?", KeyboardInterrupt, "/help", KeyboardInterrupt, KeyboardInterrupt, "never", flags=flags
        )
        == 0
    )
    begun = said[0]
    assert 0 < len(begun) < 300
    messages: list[Any] = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": begun}]
    assert prompts[1] == read_conversation(model.tokenizer, [*messages, {"role": "user", "content": "And?"}]).tokens
    err = capfd.readouterr().err
    assert "(stopped; Ctrl-C again ends)" in err
    assert len(prompts) == 2

    said.clear()
    assert chatting("Go on.", KeyboardInterrupt, "never", flags=flags) == 0  # the one that stops and one more
    said.clear()
    with pytest.raises(KeyboardInterrupt):
        chatting(words=("Go on.",), flags=flags)


def test_a_model_without_template_says_so_and_completes_text(
    chatting: Callable[..., int], model: ServedModel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    assert chatting("Once upon", "a time") == 0
    out, err = capfd.readouterr()
    expected = [answer(model, model.tokenizer(text)["input_ids"]) for text in ("Once upon", "a time")]
    assert out.removesuffix("\n") == lines_of(expected)
    assert "has no chat template" in err
    with pytest.raises(ArgumentError, match="cannot read a system message"):
        chatting(flags=["--system", "Be brief."])


def test_what_the_model_cannot_read_is_told_and_the_conversation_goes_on(
    chatting: Callable[..., int], model: ServedModel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chatting("word " * 600, "One?") == 0
    out, err = capfd.readouterr()
    assert out.removesuffix("\n") == lines_of(replies(model, "One?"))
    assert "/reset begins anew" in err
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"
    monkeypatch.setattr(model.tokenizer, "chat_template", refusing)
    with pytest.raises(ArgumentError, match="System role not supported"):
        chatting(flags=["--system", "Be brief."])
    with pytest.raises(ArgumentError, match="Put the question in quotes"):
        chatting(words=("What", "is"))


def test_text_of_a_model_moves_no_cursor_and_hides_nothing() -> None:
    assert shown("a\tb\nc") == "a\tb\nc"
    assert shown("\x1b[2J\r\x07 \u202e\u200b 你好") == "[U+001B][2J[U+000D][U+0007] [U+202E][U+200B] 你好"


def test_sampling_is_what_the_model_recommends_unless_it_is_nonsense(tmp_path: Path) -> None:
    nothing = {"temperature": 0.7, "top_p": 1.0, "top_k": -1}
    file = tmp_path / "generation_config.json"
    assert sampling_defaults(str(tmp_path)) == nothing
    for text, expected in (
        ('{"temperature": 0.6, "top_p": 0.95, "top_k": 20}', {"temperature": 0.6, "top_p": 0.95, "top_k": 20}),
        ('{"temperature": -1, "top_p": "x", "top_k": 0}', nothing),
        ('{"temperature": 0}', {**nothing, "temperature": 0}),
        ('{"temperature": 1e-6}', {**nothing, "temperature": 1e-6}),
        ('{"temperature": 1e-9}', {**nothing, "temperature": 1e-9}),
        ('{"temperature": Infinity}', nothing),
        ('{"temperature": NaN}', nothing),
        ("[]", nothing),
        ("{", nothing),
    ):
        file.write_text(text)
        assert sampling_defaults(str(tmp_path)) == expected


def test_at_a_terminal(tiny_model: Path, model: ServedModel) -> None:
    """In a process of its own, at a terminal: the prompt, an answer, Ctrl-C twice."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "slime_core", "chat", str(tiny_model), *GREEDY]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = ""

    def until(text: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 120
        while text not in seen:
            assert time.monotonic() < deadline, f"waited in vain for {text!r}: {seen!r}"
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536).decode(errors="replace").replace("\r\n", "\n")
        before, _, seen = seen.partition(text)
        return before

    def until_it_waits() -> None:
        """readline hears of a signal once it waits for keys: the process sleeps, and has done nothing for half a second."""
        before = None
        while (now := Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[:13]) != before:
            before = now if now[0] == "S" else None
            time.sleep(0.5)

    try:
        assert "(greedy; /help)" in until("> ")
        os.write(ours, b"One?\n")
        assert lines_of(replies(model, "One?")) in until("> ")
        until_it_waits()
        process.send_signal(signal.SIGINT)
        until("Ctrl-C again ends")
        until("> ")
        until_it_waits()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
