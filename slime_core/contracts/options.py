"""Options: how a group of them is declared, and how a component says which ones it reads.

    class MyArguments(ArgumentGroup):
        "Options of my reward."
        my_threshold: float = option(0.5, "Rewards below this count as 0.", ge=0)

becomes `--my-threshold` on the command line, `my_threshold:` in a recipe and `args.my_threshold` in code. Whatever reads
the option says so:

    Lazy("my_package.reward:my_reward", "…", reads_options=("my_threshold",))      # in slime_rewards()

    @reads_options("my_threshold")                                                 # or at the object itself
    def my_reward(args, sample): ...

An option that somebody set, that installed components declare and that none of the chosen ones reads is reported. A
component that declares nothing may read whatever the installed ones of its kind declare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from slime_core.errors import DataError
from slime_core.plain import read_json

REQUIRED: Any = ...

FURTHER_ATTRIBUTES = "_slime_attributes"
"""Where the class of a run's arguments has the `attributes` of all groups."""

Component = TypeVar("Component")


class ArgumentGroup(BaseModel):
    """A documented group of options: one pydantic model, its docstring being the group's title in `--help`.

    Attributes:
        read_by_core: the core itself reads these options in every run; so only for groups of the core.
        families: {prefix: "module:function"} for options that another program defines, such as all those of a server that
            a plugin starts. When somebody sets options whose names begin with the prefix and that do not exist, the function
            is called with these names and returns an `ArgumentGroup` with them, or raises `ArgumentError`.
        attributes: {name: value} of what functions that were written for another program read from `args` and nobody need set
            here; a function gives the value from the arguments. An option of the same name goes before, unless it is None where
            such a function is called.
        of_layout: these options say how a run is spread over ranks and devices, and change no number but for rounding. Whoever
            evaluates its model in one process leaves them out.
    """

    # Only the model of all groups together validates anything, so no group builds a validator of its own.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, defer_build=True)
    read_by_core: ClassVar[bool] = False
    families: ClassVar[dict[str, str]] = {}
    attributes: ClassVar[dict[str, Any]] = {}
    of_layout: ClassVar[bool] = False


def option(
    default: Any,
    help: str,
    *,
    read_by_core: bool | str | None = None,
    when: str | None = None,
    env: str | None = None,
    affects_result: bool = True,
    repeatable: bool = False,
    secret: bool = False,
    **constraints: Any,
) -> Any:
    """Declare an option.

    Args:
        default: the default, or `REQUIRED`.
        help: one or two sentences for `--help` and the docs.
        read_by_core: overrides the group's `read_by_core`; a text is the condition under which the core reads it: the name
            of an option that must be set, or "!name" for one that must not.
        when: name of an option that must be set (truthy) for this one to have an effect; "!name" for must not; "a|b"
            for one of them.
        env: environment variable that sets it (weaker than the command line, stronger than the recipe).
        affects_result: False for options that cannot change the trained weights (paths, logging, how long to run);
            they may differ when a run is resumed.
        repeatable: of a list: a flag that is given again adds to the values that it was given before.
        secret: `env:NAME` stands for what an environment variable holds. Give such an option the type `SecretStr`, which is
            shown nowhere; of a URL, passwords alone are masked.
        constraints: pydantic constraints such as `ge=0`.
    """
    meta: dict[str, Any] = {
        "read_by_core": read_by_core,
        "when": when,
        "env": env,
        "affects_result": affects_result,
        "repeatable": repeatable,
        "secret": secret,
    }
    return Field(default, description=help, json_schema_extra={"slime": meta}, **constraints)


def from_json(value: object) -> object:
    """Validator (`mode="before"`) of options that hold a JSON object: the command line gives its text.

    Raises:
        ValueError: the text is no JSON that can be read.
    """
    try:
        return read_json(value) if isinstance(value, str) else value
    except DataError as error:
        raise ValueError(f"expected a JSON object: {error}") from None


def reads_options(*names: str) -> Callable[[Component], Component]:
    """Decorator of components that no `Lazy` stands for: which options they read.

    Args:
        names: of options, or of whole groups (the name of the class). "name?other" is read only if the option `other` is
            set, "name?!other" only if it is not.
    """

    def mark(component: Component) -> Component:
        component.reads_options = names  # type: ignore[attr-defined]
        return component

    return mark
