"""Every option of slime has its sentence, and the table of defaults is true; docs/from-slime.md is up to date."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from slime_core.arguments.elsewhere import of_another_program
from slime_core.arguments.from_slime import PROGRAMS, Fate, fate_of, fates
from slime_core.arguments.namespace import Namespace
from slime_core.plugins import Plugins

ROOT = Path(__file__).parent.parent
OPTIONS = Namespace(Plugins()).options
FATES = [fate for program in PROGRAMS for fate in fates(program).values()]


def test_the_page_is_what_the_script_writes() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "generate_from_slime.py"))["page"]()
    assert page == (ROOT / "docs" / "from-slime.md").read_text(encoding="utf-8"), (
        "run: python scripts/generate_from_slime.py"
    )


@pytest.mark.parametrize(
    ("kind", "name", "here"),
    [
        ("rollout", "slime.rollout.sft_rollout.generate_rollout", "sft"),
        ("rollout", "slime.rollout.sglang_rollout.generate_rollout", "rl"),
        ("rollout", "slime.rollout.fully_async_rollout.generate_rollout_fully_async", "fully_async"),
        ("generator", "slime.rollout.sglang_rollout.generate", "single_turn"),
        ("generator", "slime.rollout.sglang_streaming_rollout.generate_streaming", "single_turn"),
        ("importance_weight", "slime.backends.megatron_utils.loss.vanilla_tis_function", "tis"),
        ("importance_weight", "slime.backends.megatron_utils.loss.icepop_function", "icepop"),
    ],
)
def test_functions_that_slimes_scripts_name_are_the_components_here(kind: Any, name: str, here: str) -> None:
    assert Plugins().select(kind, name).name == here


def test_all_options_of_slime_are_told() -> None:
    assert len(fates("slime")) == 223  # those of its arguments.py, of 21 August 2026
    assert all(
        f"| `{fate.flag}` |" in (ROOT / "docs" / "from-slime.md").read_text() for fate in fates("slime").values()
    )


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
def test_an_option_is_here_exactly_where_the_table_says_so(fate: Fate) -> None:
    assert (fate.name in OPTIONS or fate.name.removeprefix("no_") in OPTIONS) == fate.is_here
    assert fate.verdict == "same" or fate.text.endswith("."), "a sentence says what is different, or what to do"


@pytest.mark.parametrize("fate", [fate for fate in FATES if fate.is_here], ids=lambda fate: fate.name)
def test_the_defaults_that_differ_are_those_that_are_said_to(fate: Fate) -> None:
    here = OPTIONS[fate.name].default
    nothing = (None, False, [], {})
    same = fate.default == here or (fate.default in nothing and here in nothing)
    assert same == (not fate.why), f"slime's default is {fate.default!r}, ours {here!r}"


def test_an_option_that_is_not_here_has_a_sentence_of_its_own_and_no_two_the_same() -> None:
    told = [of_another_program(fate.name) for fate in FATES if not fate.is_here]
    assert all(text.startswith((" It is an option of slime. ", " It is an option of Megatron. ")) for text in told)
    assert len(set(told)) == len(told)


def test_the_option_that_a_sentence_recommends_is_one() -> None:
    of_commands = {"parity", "components"}  # `slime check --parity`, `slime plugins --components`
    named = {(fate.name, flag) for fate in FATES for flag in re.findall(r"--([a-z0-9-]+)(?![a-z0-9…-])", fate.text)}
    unknown = {
        (name, flag) for name, flag in named if (own := flag.replace("-", "_")) not in OPTIONS and fate_of(own) is None
    }
    assert {flag for _, flag in unknown} <= of_commands, unknown
