"""Every command in README.md and docs/*.md runs, or the page says why not; and every option in them exists."""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from docs_commands import OWN_TEST, ROOT, Block, blocks, inline

from slime_core.arguments.command_line import parse_command_line, split_recipe
from slime_core.arguments.namespace import Namespace
from slime_core.cli import main
from slime_core.cli.look_options import read_look_options
from slime_core.errors import ArgumentError, NotInstalled
from slime_core.plugins import Plugins

RUNS = ("train", "train-async", "check")
GROUPS = ("data", "convert", "plugins")
"""Commands that have commands of their own."""
BLOCKS = blocks()
RECIPE = """
hf_checkpoint: MODEL
prompt_data: [rows.jsonl]
input_key: messages
num_rollout: 1
rollout_function_path: sft
rollout_batch_size: 2
loss_type: sft_loss
"""


@pytest.fixture(scope="module")
def namespace() -> Namespace:
    return Namespace(Plugins())


@pytest.fixture
def desk(tmp_path, tiny_model, chat_rows, monkeypatch) -> Path:
    """A folder with what the pages take for granted: MODEL, recipe.yaml, rows."""
    for name in ("MODEL", ".cache/model/SmolLM2-135M-Instruct"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tiny_model)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    rows = [json.loads(line) for line in Path(chat_rows).read_text(encoding="utf-8").splitlines()][:12]
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    openhermes = [
        {"conversations": [{"from": roles[m["role"]], "value": m["content"]} for m in row["messages"]]} for row in rows
    ]
    questions = [{"prompt": "1 + 1 =", "label": "2"}]
    for name, lines in {
        "rows.jsonl": [{**row, **questions[0]} for row in rows],
        "in.jsonl": openhermes,
        "conversations.jsonl": openhermes,
    }.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "openhermes2_5.jsonl").write_text((tmp_path / "rows.jsonl").read_text(encoding="utf-8") * 4)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "convert", "--from", "messages", "openhermes2_5.jsonl", "openhermes2_5.parquet"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))  # for whoever talks with a model
    return tmp_path


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if not b.marker or b.marker[0] == "planned, not run:"], ids=lambda b: b.where
)
def test_a_block_runs_as_it_stands(block: Block, desk):
    for command, *words in block.commands:
        assert command == "slime", f"{block.where}: {command} {' '.join(words)} is not run here; mark the block"
        if block.marker and words[0] in RUNS:
            words[0] = "check"
        try:
            status = main(words)
        except SystemExit as done:  # of --help
            status = int(done.code or 0)
        assert status == 0, f"{block.where}: slime {' '.join(words)}"


def test_a_block_that_is_not_run_says_which_test_does_or_why():
    for block in BLOCKS:
        kind, rest = block.marker or ("", "")
        if kind == "run by":
            assert (ROOT / rest).is_file(), f"{block.where}: there is no {rest}"
        elif kind:
            assert len(rest) > 15, f"{block.where}: why is it not run?"


ALL = [(b.where, command) for b in BLOCKS if OWN_TEST not in b.where for command in b.commands] + inline()


def test_every_command_exists_with_its_options(namespace, capsys):
    wrong = [
        f"{where}: {' '.join(command)}: {why}"
        for where, command in ALL
        if (why := what_is_wrong(namespace, command, capsys))
    ]
    assert not wrong, "\n".join(wrong)


def what_is_wrong(namespace: Namespace, command: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What does not exist of a command and the options that it names; None if all does."""
    name, *words = command
    if name == "slime":
        return wrong_of_slime(namespace, words, capsys)
    if name.startswith("--"):
        return wrong_of_a_run(namespace, command)
    if name in ("bash", "python") and words[0].startswith("scripts/"):
        return None if (ROOT / words[0]).is_file() else "no such script"
    if name == "python" and words[0] == "-m" and words[1].startswith("benchmarks."):
        return None if (ROOT / f"{words[1].replace('.', '/')}.py").is_file() else "no such benchmark"
    if name == "pip":
        return wrong_of_pip(words)
    if "slime" in words:  # ray job submit … -- slime train …
        return wrong_of_slime(namespace, words[words.index("slime") + 1 :], capsys)
    return None


@cache
def installed_commands() -> Mapping[str, Any]:
    return Plugins().components("command")


def wrong_of_slime(namespace: Namespace, words: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    commands = installed_commands()
    name, *rest = words
    if name.startswith("-") or name.isupper():
        return None
    if name not in commands:
        return "no such command"
    if name in RUNS and "--as-slime" not in rest and "--help" not in rest:
        _, rest = read_look_options(rest)
        recipe, flags = split_recipe(namespace, [word for word in rest if word not in OF_CHECK], "slime train")
        if recipe and recipe.startswith("recipes/") and "my-" not in recipe and not (ROOT / recipe).is_file():
            return "no such recipe"
        return wrong_of_a_run(namespace, flags)
    path = [name, *(word for word in rest[:1] if name in GROUPS and not word.startswith("-") and not word.isupper())]
    told = help_of(tuple(path), capsys)
    if told is None:
        return "no such command"
    flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in told and not namespace.options.get(flag[2:].replace("-", "_"))]
    return f"no option {unknown[0]}" if unknown and name != "check" else None


OF_CHECK = ("--parity", "--gradients")
"""Options of `slime check` alone."""


def wrong_of_a_run(namespace: Namespace, flags: list[str]) -> str | None:
    """What is wrong with the options of a run, read as a run reads them."""
    with suppress(NotInstalled):  # options of SGLang, which are known where it is installed
        try:
            _, errors = parse_command_line(namespace, flags)
        except ArgumentError as error:
            # In a sentence an option may stand without the value that it needs.
            unknown = [word for word in flags if word.startswith("--") and word not in known_flags(namespace)]
            return str(error) if unknown else None
        return next((str(error) for error in errors if not isinstance(error, NotInstalled)), None)
    return None


def known_flags(namespace: Namespace) -> set[str]:
    """All options as they stand on a command line, and switches with `--no-`."""
    return {flag for option in namespace.options.values() for flag in (option.flag, f"--no-{option.flag[2:]}")}


def wrong_of_pip(words: list[str]) -> str | None:
    """Folders and extras that `pip install` names and the repository does not have."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "-e" and not (ROOT / after / "pyproject.toml").is_file():
            return f"no distribution {after}"
        if (named := re.fullmatch(r"(slime-[a-z-]+)(?:\[([a-z,-]+)\])?", word)) and named[1] in distributions():
            for extra in (named[2] or "").split(","):
                if extra and extra not in distributions()[named[1]]:
                    return f"no extra {extra}"
    return None


@cache
def distributions() -> dict[str, set[str]]:
    """The extras of each distribution of the repository."""
    found = {}
    for file in (ROOT / "pyproject.toml", *ROOT.glob("*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        found[project["name"]] = set(project.get("optional-dependencies", {}))
    return found


_HELP: dict[tuple[str, ...], str | None] = {}


def help_of(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str | None:
    """The help of a command; None if there is no such one."""
    if path not in _HELP:
        try:
            status = main([*path, "--help"])
        except SystemExit as done:
            status = int(done.code or 0)
        _HELP[path] = capsys.readouterr().out if status == 0 else None
    return _HELP[path]
