"""`--custom-config-path` sets attributes that functions of somebody's own read on `args`, and options, as in slime."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import Resolved, resolve
from slime_core.cli import main
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.own_arguments import own_arguments

WORDS = ["--hf-checkpoint", "m", "--prompt-data", "rows.jsonl", "--num-rollout", "1", "--rollout-batch-size", "2"]


@pytest.fixture(scope="module")
def namespace() -> Namespace:
    return Namespace(Plugins())


def resolved(namespace: Namespace, path: Path, text: str, *more: str) -> Resolved:
    path.write_text(text)
    return resolve(namespace, [*WORDS, *more, "--custom-config-path", str(path)], env={})


def test_own_functions_read_its_values_and_what_they_set_wins(namespace: Namespace, tmp_path: Path) -> None:
    text = "max_turns: 4\nsearch: {topk: 3, urls: [a, b]}\nthreshold: 1.0e-3\n"
    args = resolved(namespace, tmp_path / "c.yaml", text, "--custom-config", '{"max_turns": 1, "other": true}').args

    def function(own: Any) -> Any:
        own.search["urls"].append("c")
        seen = (own.max_turns, own.search["topk"], own.threshold, own.other, hasattr(own, "none"))
        own.max_turns = 9
        return seen

    selected = Selected[Any]("data_source", "f", function, "import path", "--data-source-path")
    assert selected(args) == (4, 3, 1e-3, True, False)
    assert args.custom_config["search"] == {"topk": 3, "urls": ["a", "b"]}
    assert own_arguments(args).max_turns == 9
    assert pickle.loads(pickle.dumps(own_arguments(args))).threshold == 1e-3


def test_names_of_options_set_them_and_win_over_the_command_line_which_is_said(
    namespace: Namespace, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    found = resolved(namespace, path, "lr: 2e-5\nn-samples-per-prompt: 4\nmine: 1\n", "--lr", "1e-5")
    assert (found.args.lr, found.args.n_samples_per_prompt, found.args.custom_config) == (2e-5, 4, {"mine": 1})
    assert found.args.global_batch_size == 8
    assert found.provenance["lr"] == f"custom config {path}, not '1e-5' of command line"
    assert found.result_arguments()["custom_config"] == {"mine": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "must be a YAML mapping of names to values"),
        ("a: 1\na: 2\n", "the key 'a' is there twice"),
        ("1a: 1\n", "which functions cannot read as an attribute of args"),
        ("_a: 1\n", "which functions cannot read as an attribute of args"),
        ("custom_config_path: b\n", "leave it out there"),
        ("lr: fast\n", "--lr: given 'fast' (custom config"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(text: str, said: str, namespace: Namespace, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as error:
        resolved(namespace, tmp_path / "c.yaml", text)
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *WORDS, "--custom-config-path", "no.yaml"]) == 2
    assert "--custom-config-path no.yaml cannot be read" in capsys.readouterr().err
