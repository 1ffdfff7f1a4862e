"""The types of plugins' options: a flag and a recipe give the same value, or the plugin is set aside."""

from __future__ import annotations

import textwrap

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import Stage
from slime_core.arguments.resolve import resolve
from slime_core.plugins import PluginInfo, Plugins

BASE = ["--hf-checkpoint", "m", "--prompt-data", "d", "--rollout-batch-size", "1", "--num-rollout", "1"]

CODE = """
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import json
from pydantic import Field, SecretStr, field_validator

from slime_core import hookimpl
from slime_core.contracts.options import REQUIRED, ArgumentGroup, option

class Colour(Enum):
    RED = "red"

class Number(Enum):
    ONE = 1

class TypedArguments(ArgumentGroup):
    "Typed"
    typed: {} = option(None, "An option of some type.")
    {}

@hookimpl
def slime_argument_groups(): return [TypedArguments]
"""

READS_JSON = """
    @field_validator("typed", mode="before")
    @classmethod
    def of_text(cls, value):
        return json.loads(value) if isinstance(value, str) else value
"""


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Makes a plugin with one option, `typed`, of this type, and returns what is known of it and all options."""

    def make(kind: str, validator: str = "") -> tuple[PluginInfo, Namespace]:
        name = f"typed_{tmp_path.name}"
        code = CODE.format(kind, textwrap.indent(textwrap.dedent(validator), "    "))
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        info = PluginInfo(name, f"dist-{name}", "1.2", name)
        return info, Namespace(Plugins([info]))

    return make


READ = {
    "str": (["5"], "5"),
    "Optional[int]": (["5"], 5),
    "float | None": (["5"], 5.0),
    "bool": ([], True),
    "Optional[bool]": ([], True),
    "Path": (["a/b"], "a/b"),
    "Colour": (["red"], "red"),
    "Literal['a', 'b']": (["a"], "a"),
    "SecretStr": (["s"], "s"),
    "Union[int, float]": (["0.5"], 0.5),
    "float | Literal['auto']": (["0.5"], 0.5),
    "float | Literal['auto'] | None": (["auto"], "auto"),
    "list[int] | None": (["1", "2"], [1, 2]),
    "list[str]": (["1", "2"], ["1", "2"]),
    "list[bool]": (["true", "false"], [True, False]),
    "list[Literal['a', 'b']]": (["a", "b"], ["a", "b"]),
    "list[Annotated[int, Field(ge=0)]]": (["1"], [1]),
    "Annotated[int, Field(ge=0)] | None": (["1"], 1),
}


@pytest.mark.parametrize(("kind", "given"), READ.items())
def test_a_flag_and_a_recipe_give_an_option_the_same_value(kind, given, typed):
    words, value = given
    info, namespace = typed(kind)
    assert (info.status, info.reason) == ("loaded", "")
    of_flag = resolve(namespace, [*BASE, "--typed", *words], env={}).args
    of_recipe = resolve(namespace, BASE, Stage("r.yaml", {"typed": value}), {}).args
    assert of_flag.typed == of_recipe.typed
    assert type(of_flag.typed) is type(of_recipe.typed)


REFUSED = [
    *("tuple[int, int]", "set[str]", "frozenset[int]", "dict[str, int]", "dict", "list", "list[list[int]]", "list[dict[str, int]]"),
    *("int | str", "Optional[Union[str, int]]", "int | list[int]", "list[int] | int", "list[int | str]", "bool | int", "Any"),
    *("Literal[1, 2]", "Number", "object"),
]  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_an_option_that_a_flag_cannot_set_sets_its_plugin_aside(kind, typed):
    info, namespace = typed(kind)
    assert info.status == "broken"
    assert "The type of its option --typed (TypedArguments) is " in info.reason
    assert "typed" not in namespace.options


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("dict[str, int]", '{"a": 1}', {"a": 1}), ("tuple[int, int] | None", "[1, 2]", (1, 2)), ("int | str", "5", 5)],
)
def test_a_validator_of_its_own_may_read_the_text(kind, text, value, typed):
    info, namespace = typed(kind, READS_JSON)
    assert info.status == "loaded"
    assert resolve(namespace, [*BASE, "--typed", text], env={}).args.typed == value
