"""Import paths: how entry points, `Lazy` and options such as `--custom-rm-path` name objects."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from types import ModuleType
from typing import Any

from slime_core.errors import EXITS, PluginError, exit_in_words


def resolve(target: str) -> Any:
    """ "package.module:attribute", "package.module.attribute" or "package.module" → the object."""
    if ":" in target:
        module, _, attribute = target.partition(":")
        return getattr(_imported(module), attribute)
    try:
        return _imported(target)
    except ModuleNotFoundError as error:
        module, _, attribute = target.rpartition(".")
        if not module or (error.name and not f"{target}.".startswith(f"{error.name}.")):
            raise
        loaded = _imported(module)
        if not hasattr(loaded, attribute):
            raise PluginError(f"{module} has no {attribute!r}; check the name in {target!r}.") from None
        return getattr(loaded, attribute)


def _imported(module: str) -> ModuleType:
    """Import a module, of which nothing may end the program."""
    try:
        return importlib.import_module(module)
    except EXITS as error:
        raise PluginError(
            f"Importing {module} raised {exit_in_words(error)}, which would end the program; "
            'leave that to code under `if __name__ == "__main__"`.'
        ) from error


def names_a_module(name: str) -> bool:
    """Whether a name is an import path whose first package or module is there."""
    first, *rest = name.replace(":", ".").split(".")
    return bool(first and rest) and (first in sys.modules or importlib.util.find_spec(first) is not None)


def looked_in(error: Exception) -> str:
    """Where Python looked for a module that it did not find: all folders but those of the standard library."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    own = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    folders = [os.path.abspath(folder) for folder in sys.path if not folder.endswith(".zip")]
    shown = [f for f in dict.fromkeys(folders) if not f.startswith(own) or "site-packages" in f]
    return f"Python looked in {', '.join(shown)}; go to the folder that holds it, or add that to PYTHONPATH. "
