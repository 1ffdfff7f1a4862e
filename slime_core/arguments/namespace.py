"""One flat namespace out of all groups: which options exist, where each came from, and the frozen model of them."""

from __future__ import annotations

import functools
import importlib
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from packaging.utils import canonicalize_name
from pydantic import SecretStr, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from slime_core.arguments.elsewhere import of_another_program
from slime_core.arguments.groups import GROUPS, RunArguments
from slime_core.contracts.options import FURTHER_ATTRIBUTES, ArgumentGroup
from slime_core.errors import PluginError, did_you_mean
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import brought_by
from slime_core.plugins.loading import set_aside


@dataclass(frozen=True)
class Option:
    """One option of the namespace.

    Attributes:
        name: its name in code; `flag` is the same with dashes.
        group, distribution: where it was declared.
        field: pydantic's view: type, default, constraints, help text.
        read_by_core: whether the core itself reads it; a text: the condition under which it does.
        when: see `slime_core.contracts.options.option`.
    """

    name: str
    group: type[ArgumentGroup]
    distribution: str
    field: FieldInfo

    def _meta(self, key: str) -> Any:
        extra = self.field.json_schema_extra
        declared = extra.get("slime") if isinstance(extra, dict) else None
        return declared.get(key) if isinstance(declared, dict) else None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def read_by_core(self) -> bool | str:
        own: bool | str | None = self._meta("read_by_core")
        return self.group.read_by_core if own is None else own

    @property
    def when(self) -> str | None:
        condition: str | None = self._meta("when")
        return condition

    @property
    def env(self) -> str | None:
        variable: str | None = self._meta("env")
        return variable

    @property
    def affects_result(self) -> bool:
        return self._meta("affects_result") is not False

    @property
    def repeatable(self) -> bool:
        return self._meta("repeatable") is True

    @property
    def is_secret(self) -> bool:
        return self._meta("secret") is True

    @property
    def required(self) -> bool:
        return self.field.is_required()

    @property
    def default(self) -> Any:
        value = self.field.get_default(call_default_factory=True)
        return None if value is PydanticUndefined else value

    @property
    def base_type(self) -> Any:
        """The annotation without None."""
        return _alternatives(self.field.annotation)[0]

    @property
    def is_flag(self) -> bool:
        return self.base_type is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.base_type) is list

    @property
    def choices(self) -> tuple[Any, ...]:
        return typing.get_args(self.base_type) if typing.get_origin(self.base_type) is Literal else ()

    @property
    def reads_text(self) -> bool:
        """Whether a flag can set it: texts are read as its type, to what a recipe gives, or a validator of its own reads them."""
        validators = self.group.__pydantic_decorators__.field_validators.values()
        if any(self.name in validator.info.fields and validator.info.mode != "after" for validator in validators):
            return True
        annotation = self.field.annotation
        if self.is_list and len(_alternatives(annotation)) == 1:
            (annotation,) = typing.get_args(self.base_type)
        return _is_of_text(annotation)


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself, without None and what `Annotated` adds."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [kind for one in inner if one is not type(None) for kind in _alternatives(one)]
    return _alternatives(inner[0]) if typing.get_origin(annotation) is Annotated else [annotation]


def _is_of_text(annotation: Any) -> bool:
    """Whether pydantic reads a text as this type, and as the value that a recipe would have there: a text among other types stays one."""
    kinds = _alternatives(annotation)
    if len(kinds) > 1:
        return not {str, bool} & {*kinds} and all(map(_is_of_text, kinds))
    if typing.get_origin(kinds[0]) is Literal:
        return all(isinstance(value, str) for value in typing.get_args(kinds[0]))
    if not isinstance(kinds[0], type):
        return False
    if issubclass(kinds[0], Enum):
        return all(isinstance(member.value, str) for member in kinds[0])
    return issubclass(kinds[0], (str, int, float, PurePath, SecretStr))


class Namespace:
    """All options of the core and of the loaded plugins.

    Attributes:
        options: by name.
    """

    def __init__(self, plugins: Plugins) -> None:
        self.options: dict[str, Option] = {}
        self._plugins = plugins
        self._plugin_groups: list[type[ArgumentGroup]] = []
        self._families: dict[str, tuple[str, str]] = {}  # prefix → what declares its options, distribution
        for group in GROUPS:
            self._add(group, "slime-core")
        for info, given in plugins.provide("slime_argument_groups"):
            try:
                for group in _checked_groups(given, self.options, info.distribution):
                    self._add(group, info.distribution)
            except PluginError as error:
                set_aside(info, error)

    def advice(self, name: str) -> str:
        """A sentence, with a space in front, on an option that does not exist here: what to install or to switch on for it,
        which other program has it, or which name is near; "" where nothing is known."""
        if found := self._plugins.where_to_get("option", name):
            return found
        brings = brought_by("option", name)
        for info in self._plugins.infos:
            if canonicalize_name(info.distribution) == brings and info.status != "loaded":
                words = "is off" if info.status == "disabled" else "failed to load"
                return f" {brings} brings it, whose plugin {info.name!r} {words}: {info.reason}."
        flags = [option.flag for option in self.options.values()]
        return of_another_program(name) or did_you_mean("--" + name.replace("_", "-"), flags)

    @functools.cached_property
    def model(self) -> type[RunArguments]:
        """The pydantic model whose instances are the run's `args`: `RunArguments` with the plugins' groups. A class of this namespace
        alone: what hooks set on `args` is kept there."""
        further = {name: value for group in self._plugin_groups for name, value in group.attributes.items()}
        missing = {
            name: _Given(value) if callable(value) else value
            for name, value in further.items()
            if name not in self.options
        }
        mixin = type("Attributes", (), {**missing, FURTHER_ATTRIBUTES: further})
        groups: tuple[Any, ...] = (RunArguments, *self._plugin_groups, mixin)
        model: type[RunArguments] = create_model("Arguments", __base__=groups)
        return model

    def admit(self, names: Iterable[str]) -> None:
        """Declare those of these names that are no options yet and belong to a family.

        Raises:
            ArgumentError: a family has no such option, or cannot be looked into here.
        """
        unknown = [name for name in names if name not in self.options]
        for prefix, (target, distribution) in self._families.items():
            if wanted := [name for name in unknown if name.startswith(prefix)]:
                module, _, function = target.partition(":")
                self._add(getattr(importlib.import_module(module), function)(wanted), distribution)
                self.__dict__.pop("model", None)  # one without them

    def is_of_a_family(self, name: str) -> bool:
        """Whether another program defines the options whose names begin as this one's."""
        return any(name.startswith(prefix) for prefix in self._families)

    def _add(self, group: type[ArgumentGroup], distribution: str) -> None:
        if group not in GROUPS:
            self._plugin_groups.append(group)
        self._families |= {prefix: (target, distribution) for prefix, target in group.families.items()}
        for name, field in group.model_fields.items():
            self.options[name] = Option(name, group, distribution, field)


class _Given:
    """An attribute of arguments whose value a function of them gives, until somebody sets it on a copy."""

    def __init__(self, value: Callable[[Any], Any]) -> None:
        self._value = value

    def __get__(self, args: Any, owner: type) -> Any:
        return self if args is None else self._value(args)


def _checked_groups(given: Any, known: dict[str, Option], distribution: str) -> list[type[ArgumentGroup]]:
    """What a plugin's `slime_argument_groups` returned, if it is well formed and takes no name that is taken."""
    if not isinstance(given, (list, tuple)) or not all(
        isinstance(group, type) and issubclass(group, ArgumentGroup) for group in given
    ):
        raise PluginError(
            f"Its slime_argument_groups returned {given!r}; expected a list of subclasses of "
            "slime_core.contracts.options.ArgumentGroup."
        )
    for group in given:
        for name, field in group.model_fields.items():
            if name in known:
                raise PluginError(
                    f"Two distributions define the option {known[name].flag}: {known[name].distribution} "
                    f"({known[name].group.__name__}) and {distribution} ({group.__name__}). Uninstall one of them or "
                    "rename its option."
                )
            made = Option(name, group, distribution, field)
            if not made.reads_text:
                raise PluginError(
                    f"The type of its option {made.flag} ({group.__name__}) is {field.annotation}, which cannot be read from a command "
                    "line. Give it one of str, int, float, bool, Path, SecretStr, a Literal or Enum of texts, or a list of one of "
                    'these, or read the text in a validator of its own: @field_validator(…, mode="before").'
                )
    return list(given)
