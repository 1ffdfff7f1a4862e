"""The arguments as a function of somebody's own is given them: it may set what it likes on them, and the run's stay as they are.

Functions that were written for slime leave things on `args` for the functions that they call, and for their own next call.
"""

from __future__ import annotations

import argparse
import copy
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup

logger = logging.getLogger(__name__)

_SETTABLE = "_slime_settable"  # where the class of a run's arguments keeps the one whose instances can be changed


def own_arguments(args: Any) -> Any:
    """Return a copy of a run's arguments on which any attribute can be set; of anything else, the very object.

    What is set is seen where this copy goes, and in copies of it. A name that no option has can be read from later copies too, until
    they set it themselves; options begin with the run's value in each copy. The values of `--custom-config` are attributes too.
    """
    from slime_core.contracts.options import (
        FURTHER_ATTRIBUTES,
        ArgumentGroup,
    )  # imports pydantic, which listing plugins does not need

    if not isinstance(args, ArgumentGroup) or hasattr(type(args), "_slime_left"):
        return args
    kind = type(args)
    if _SETTABLE not in vars(kind):
        setattr(kind, _SETTABLE, _settable(kind))
    copied = args.model_copy()
    values = vars(copied)
    values |= {name: copy.deepcopy(value) for name, value in values.items() if type(value) in (list, dict)}
    object.__setattr__(copied, "__class__", vars(kind)[_SETTABLE])
    for name, value in getattr(kind, FURTHER_ATTRIBUTES, {}).items():
        if copied.__dict__.get(name, value) is None:
            copied.__dict__[name] = value(args) if callable(value) else value
    return copied


def _settable(kind: type[ArgumentGroup]) -> type[ArgumentGroup]:
    """Return a subclass of a run's class of arguments whose instances can be changed."""
    left: dict[str, Any] = {}
    told: set[str] = set()

    def set_attribute(self: ArgumentGroup, name: str, value: Any) -> None:
        if name not in kind.model_fields:
            left[name] = value
        elif name not in told:
            told.add(name)
            logger.warning(
                "A function has set args.%s to %r. That is its own: the run goes by its own --%s, %r.",
                *(name, value, name.replace("_", "-"), getattr(self, name, None)),
            )
        self.__dict__[name] = value

    def get_missing(self: ArgumentGroup, name: str) -> Any:
        for values in (left, _custom(self)):
            if name in values:
                return values[name]
        raise AttributeError(f"There is no option {name!r} in this run, and nobody has set args.{name}.")

    members = {
        "__module__": kind.__module__,
        "__setattr__": set_attribute,
        "__delattr__": object.__delattr__,
        "__getattr__": get_missing,
        "__reduce__": lambda self: (_namespace, ({**_custom(self), **left, **vars(self)},)),
        "_slime_left": left,
    }
    return type.__new__(type(kind), kind.__name__, (kind,), members)


def _custom(args: ArgumentGroup) -> dict[str, Any]:
    """The values of `--custom-config`."""
    found: dict[str, Any] = vars(args).get("custom_config", {})
    return found


def _namespace(values: dict[str, Any]) -> argparse.Namespace:
    """Make what another process can read of arguments whose class only this one has."""
    return argparse.Namespace(**values)
