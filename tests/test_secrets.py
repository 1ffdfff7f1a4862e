"""Passwords and keys are shown and stored nowhere, and what is told to a person hides nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pydantic import SecretStr

from slime_core import secrets
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve, shown_arguments
from slime_core.cli import main
from slime_core.data.rows import open_rows
from slime_core.display import tell_plainly, told
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.secrets import masked

WORDS = ["--hf-checkpoint", "m", "--rollout-batch-size", "1", "--prompt-data", "x.jsonl", "--num-rollout", "1"]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://me:geheim@host:1/p", "http://***@host:1/p"),
        ("https://token@host", "https://***@host"),
        ("asked http://a:b@h and http://c:d@i.", "asked http://***@h and http://***@i."),
        ("http://h/?key=geheim&x=1", "http://h/?key=***&x=1"),
        ("http://h/?x=1&api_key=geheim", "http://h/?x=1&api_key=***"),
        ("'http://a:b@h/'", "'http://***@h/'"),
        ("me@host", "me@host"),
        ("http://h/a@b", "http://h/a@b"),
        ("train.jsonl@[0:5]", "train.jsonl@[0:5]"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, wanted: str) -> None:
    assert masked(text) == wanted


@pytest.fixture(scope="module")
def namespace() -> Namespace:
    return Namespace(Plugins())


def test_arguments_are_shown_and_compared_without_them(namespace: Namespace) -> None:
    words = [*WORDS, "--rm-url", "http://me:geheim77@h/", "--wandb-key", "geheim99"]
    resolved = resolve(namespace, words, env={})
    assert resolved.args.rm_url == "http://me:geheim77@h/"  # type: ignore[attr-defined]  # of a plugin
    stored = json.dumps([shown_arguments(resolved.args), resolved.result_arguments()])
    assert "http://***@h/" in stored
    assert "geheim" not in stored
    assert told("answered: geheim99, geheim77") == "answered: ***, ***"


def test_they_can_come_from_the_environment(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_URL", "http://me:geheim@h/")
    monkeypatch.setenv("MY_KEY", "geheim99")
    args = resolve(namespace, [*WORDS, "--rm-url", "env:MY_URL", "--wandb-key", "env:MY_KEY"], env={}).args
    assert args.rm_url == "http://me:geheim@h/"  # type: ignore[attr-defined]  # of a plugin
    assert args.wandb_key == SecretStr("geheim99")  # type: ignore[attr-defined]  # of a plugin
    with pytest.raises(ArgumentError, match=r"--rm-url is env:NONE, and the environment variable 'NONE' is not set"):
        resolve(namespace, [*WORDS, "--rm-url", "env:NONE"], env={})


def test_errors_of_a_command_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--rm-url", "http://me:geheim@h/", "--wandb-key", "geheim99", "--seed", "http://me:geheim@h/"]
    assert main(["check", *words, "--lr", "geheim99"]) == 2
    said = capsys.readouterr()
    assert "--seed" in said.err
    assert "geheim" not in said.err + said.out


UNSEEN = "a\x1b[31mb\x00c\u202ed\u2066e\u200bf\ufeffg\u2028h\x9bi"
VISIBLE = "a[U+001B][31mb[U+0000]c[U+202E]d[U+2066]e[U+200B]f[U+FEFF]g[U+2028]h[U+009B]i"


def test_what_a_terminal_would_obey_or_hide_is_visible() -> None:
    assert told(UNSEEN) == VISIBLE
    assert told("zwei\n\tZeilen äöü 你好 🙂") == "zwei\n\tZeilen äöü 你好 🙂"


def test_rows_and_names_of_files_in_errors_are_visible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a\u202elnosj.\x1b[2Jb.jsonl"
    file.write_text(json.dumps({"messages": [{"role": UNSEEN, "content": UNSEEN}]}) + "\n")
    assert len(open_rows([str(file)])) == 1
    for words in (
        ["data", "convert", str(file), str(tmp_path / "out.jsonl"), "--from", "messages"],
        ["data", "convert", str(file), str(tmp_path / "\x1b[2J.jsonl"), "--from", "messages", "--on-error", "skip"],
        ["data", "convert", str(tmp_path / "\x1b[2Jgone.jsonl"), str(tmp_path / "out.jsonl"), "--from", "messages"],
    ):
        main(words)
        said = "".join(capsys.readouterr())
        assert "[U+" in said
        assert not {"\x1b", "\u202e", "\u2066", "\x00", "\x9b"} & set(said), words


def test_log_messages_are_told_the_same_way(caplog: pytest.LogCaptureFixture) -> None:
    tell_plainly()
    try:
        logging.getLogger("slime_core.x").warning("%s at %s", UNSEEN, "http://a:b@h")
        logging.getLogger("other").warning("%s", "\x1b")
    finally:
        logging.setLogRecordFactory(logging.LogRecord)
    assert [record.getMessage() for record in caplog.records] == [f"{VISIBLE} at http://***@h", "\x1b"]
