"""Recipe files: YAML mappings of option names to values; one run, or several in turn.

    hf_checkpoint: model          # what all stages share
    stages:
      - {rollout_function_path: sft, save_hf: runs/sft, …}
      - {hf_checkpoint: runs/sft, …}

A stage's own options win over the shared ones. The `config.yaml` of a run is a recipe, too (`of_a_run`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.of_a_run import changed, is_of_a_run, to_repeat
from slime_core.arguments.recipe_names import MARK, find_recipe
from slime_core.errors import ArgumentError, SlimeError

MAX_BYTES, MAX_VALUES = 1 << 20, 10_000
"""What a recipe may have: bytes, and values with those that anchors repeat."""


@dataclass(frozen=True)
class Stage:
    """One run of a recipe.

    Attributes:
        name: the file and, where there are several, the number of the stage: how messages speak of it.
        given: option names, as they stand in the file, to values.
        number: of the stage, from 1; None where there is only one run.
        defaults: values of options that are set where they are no longer the defaults, in the recipe that repeats a run.
    """

    name: str
    given: dict[Any, Any]
    number: int | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def read(self, namespace: Namespace) -> tuple[dict[str, Any], list[SlimeError]]:
        """Return values by option name, and what is wrong: a key that is no option, or one that is there twice."""
        values: dict[str, Any] = {}
        errors: list[SlimeError] = []
        names = {key: str(key).lstrip("-").replace("-", "_") for key in self.given}
        try:
            namespace.admit(names.values())
        except ArgumentError as error:  # of a family of options
            errors.append(error)
        for key, name in names.items():
            if name not in namespace.options:
                if not (errors and namespace.is_of_a_family(name)):
                    errors.append(
                        ArgumentError(
                            f"The recipe {self.name} sets {key!r}, which is no option.{namespace.advice(name)}"
                        )
                    )
            elif name in values:
                errors.append(ArgumentError(f"The recipe {self.name} sets {namespace.options[name].flag} twice."))
            else:
                value = self.given[key]
                # YAML reads 1e-6 as text; pydantic turns the text into the number the option wants.
                values[name] = [value] if namespace.options[name].is_list and isinstance(value, str) else value
        return {**changed(self.defaults, namespace), **values}, errors


def read_mapping(path: str, what: str, of: str) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        what: the file is called by in messages, such as "The recipe".
        of: what the mapping is of, such as "option names to values".

    Raises:
        ArgumentError: the file cannot be read or is no mapping.
    """
    try:
        data = _parsed(path, _text(path, what), what)
    except OSError as error:
        raise ArgumentError(f"{what} {path} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{what} {path} is no text in UTF-8 (byte {error.start + 1}). Save it as UTF-8.") from None
    except RecursionError:
        raise ArgumentError(f"{what} {path} is nested too deeply to be read.") from None
    except ArgumentError:
        raise
    except Exception as error:  # yaml's constructors raise whatever Python raises
        text = str(error) if isinstance(error, (yaml.YAMLError, ValueError)) else f"{type(error).__name__}: {error}"
        raise ArgumentError(f"{what} {path} is not valid YAML: {text}") from None
    if not isinstance(data, dict):
        raise ArgumentError(f"{what} {path} must be a YAML mapping of {of}.")
    return data


def read_recipe(path: str) -> list[Stage]:
    """The runs of a recipe, in their order.

    Args:
        path: of a file, or @NAME of one that an installed distribution brings.

    Raises:
        ArgumentError: there is no such recipe, or the file cannot be read or is no mapping.
    """
    file = str(find_recipe(path).path) if path.startswith(MARK) else path
    data = read_mapping(file, "The recipe", "option names to values")
    if is_of_a_run(data):
        given, defaults = to_repeat(data)
        return [Stage(path, dict(given), defaults=defaults)]
    if "stages" not in data:
        return [Stage(path, data)]
    stages = data.pop("stages")
    if not (isinstance(stages, list) and stages and all(isinstance(stage, dict) for stage in stages)):
        raise ArgumentError(f"In the recipe {path}, stages must be a list of mappings of option names to values.")
    return [Stage(f"{path}, stage {n}", _merged(data, stage), n) for n, stage in enumerate(stages, start=1)]


def _text(path: str, what: str) -> str:
    with Path(path).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ArgumentError(f"{what} {path} has more than {MAX_BYTES} bytes, which none needs. Check the path.")
    return content.decode("utf-8")


def _parsed(path: str, text: str, what: str) -> Any:
    """The value of a document. Values that anchors repeat count as often as they are there."""
    loader = _Loader(text)
    loader.name = path
    try:
        data = loader.get_single_data()
    finally:
        loader.dispose()
    count, left = 0, [data]
    while left:
        value = left.pop()
        count += 1
        if count > MAX_VALUES:
            raise ArgumentError(
                f"{what} {path} has more than {MAX_VALUES} values, which anchors may repeat (&name, *name). Write out what it needs."
            )
        if isinstance(value, (dict, list, tuple, set)):
            left.extend(value)
        if isinstance(value, dict):
            left.extend(value.values())
    return data


def _merged(shared: dict[Any, Any], own: dict[Any, Any]) -> dict[Any, Any]:
    """What a stage sets: its own options win over the shared ones, with whichever dashes they are written."""
    names = {str(key).lstrip("-").replace("-", "_") for key in own}
    kept = {key: value for key, value in shared.items() if str(key).lstrip("-").replace("-", "_") not in names}
    return {**kept, **own}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads YAML, but for what it would change in silence: a key that is there twice, and whole numbers that begin with 0 or
    have colons, which YAML takes for octal ones and for times."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:  # merged ones
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_VALUES} keys", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(node.value)
        if _ODD.fullmatch(text):
            raise yaml.constructor.ConstructorError(
                None, None, f"what is the number {text!r}? Write it in decimal, without a 0 in front", node.start_mark
            )
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" in str(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, f"what is the number {str(node.value)!r}? Write it in decimal", node.start_mark
            )
        return float(super().construct_yaml_float(node))


_ODD = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-9_]+)+)")
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _kind in ("binary", "set", "omap", "pairs"):  # no option has such values
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_undefined)
