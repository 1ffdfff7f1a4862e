"""`KINDS`: every kind of component by its name, and `OBSERVERS`: the hooks that are told something.

A kind is a row `KINDS = (Kind(…), …)` in a file of this folder; all files are looked through here.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from slime_core import hookspecs
from slime_core.contracts.kind import Kind

_WITHOUT_KINDS = {
    "kind",
    "kinds",
    "options",
    "results",
    "checking",
    "memory",
    "rollout_outputs",
}  # options.py would bring pydantic into every `slime` command


def _rows() -> list[Kind]:
    modules = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name not in _WITHOUT_KINDS)
    return [row for name in modules for row in importlib.import_module(f"slime_core.contracts.{name}").KINDS]


_BY_HOOK = {row.hook: row for row in _rows()}
_HOOKS = [name for name in vars(hookspecs) if name.startswith("slime_")]

KINDS: dict[str, Kind] = {_BY_HOOK[hook].name: _BY_HOOK[hook] for hook in _HOOKS if hook in _BY_HOOK}
"""In the order of their hooks in `slime_core.hookspecs`."""

OBSERVERS = tuple(hook for hook in _HOOKS if hook != "slime_argument_groups" and hook not in _BY_HOOK)
