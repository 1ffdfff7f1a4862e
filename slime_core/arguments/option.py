"""How one option is declared. Used by the core's own groups and by every plugin that adds options.

    class MyArguments(ArgumentGroup):
        "Options of my reward."
        read_by = "reward:my_reward"
        my_threshold: float = option(0.5, "Rewards below this count as 0.", ge=0)

becomes `--my-threshold` on the command line, `my_threshold:` in a recipe and `args.my_threshold` in code.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

REQUIRED: Any = ...


class ArgumentGroup(BaseModel):
    """A documented group of options: one pydantic model, its docstring being the group's title in `--help`.

    Attributes:
        read_by: which selected component reads these options, as "kind:name" (several: "a:x b:y"); "core" means that
            every run reads them. "kind:name?option" reads them only if that option is set, "kind:name?!option" if it is not.
            A value that was set but that nothing selected reads is reported.
        families: {prefix: "module:function"} for options that another program defines, such as all those of a server that
            a plugin starts. When somebody sets options whose names begin with the prefix and that do not exist, the function
            is called with these names and returns an `ArgumentGroup` with them, or raises `ArgumentError`.
    """

    # Only the model of all groups together validates anything, so no group builds a validator of its own.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, defer_build=True)
    read_by: ClassVar[str] = "core"
    families: ClassVar[dict[str, str]] = {}


def option(
    default: Any,
    help: str,
    *,
    read_by: str | None = None,
    when: str | None = None,
    alias: str | None = None,
    env: str | None = None,
    affects_result: bool = True,
    **constraints: Any,
) -> Any:
    """Declare an option.

    Args:
        default: the default, or `REQUIRED`.
        help: one or two sentences for `--help` and the docs.
        read_by: overrides the group's `read_by` for this option.
        when: name of an option that must be set (truthy) for this one to have an effect; "!name" for must not; "a|b"
            for one of them.
        alias: a second `--flag` for the same option.
        env: environment variable that sets it (weaker than the command line, stronger than the recipe).
        affects_result: False for options that cannot change the trained weights (paths, logging, how long to run);
            they may differ when a run is resumed.
        constraints: pydantic constraints such as `ge=0`.
    """
    meta: dict[str, Any] = {
        "read_by": read_by,
        "when": when,
        "alias": alias,
        "env": env,
        "affects_result": affects_result,
    }
    return Field(default, description=help, json_schema_extra={"slime": meta}, **constraints)
