"""Import paths: how entry points, `Lazy` and options such as `--custom-rm-path` name objects."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from pathlib import PurePath
from types import ModuleType
from typing import Any

from slime_core.errors import EXITS, PluginError, exit_in_words


def resolve(target: str) -> Any:
    """ "package.module:attribute", "package.module.attribute" or "package.module" → the object.

    Without a colon it is what `from package.module import attribute` gives: what the first part has under that name, else its module.

    Raises:
        PluginError: there is no such attribute, or the path is that of a file.
    """
    path, colon, attribute = target.partition(":")
    if os.sep in path or path.endswith(".py"):
        raise PluginError(
            f"{target!r} is the path of a file; write '{PurePath(path).stem}.{attribute or 'NAME'}', which Python finds in the "
            "current folder or on PYTHONPATH."
        )
    if not colon:
        path, _, attribute = target.rpartition(".")
    if not path:
        return imported(target)
    module = imported(path)
    if not colon and not hasattr(module, attribute):
        try:
            return imported(target)
        except ModuleNotFoundError as error:
            if error.name != target:
                raise
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PluginError(f"{_described(module)} has no {attribute!r}; check the name in {target!r}.") from None


def imported(module: str) -> ModuleType:
    """Import a module, of which nothing may end the program."""
    try:
        return importlib.import_module(module)
    except EXITS as error:
        raise PluginError(
            f"Importing {module} raised {exit_in_words(error)}, which would end the program; "
            'leave that to code under `if __name__ == "__main__"`.'
        ) from error


def _described(module: ModuleType) -> str:
    """A module, the file that it is of, and the file in the current folder that its name was to mean, if that is another."""
    file, own = getattr(module, "__file__", None), f"{module.__name__.partition('.')[0]}.py"
    if file is None:
        return module.__name__
    hidden = os.path.isfile(own) and not os.path.samefile(own, file)
    return f"{module.__name__} ({file}{f', which hides ./{own}; rename that' if hidden else ''})"


def names_a_module(name: str) -> bool:
    """Whether a name is an import path whose first package or module is there."""
    first, *rest = name.replace(":", ".").split(".")
    return bool(first and rest) and (first in sys.modules or importlib.util.find_spec(first) is not None)


def leads_nowhere(target: str, error: Exception) -> bool:
    """Whether an import path has named nothing that is there. Else `error` is what a module raised that was found, while it was imported."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and f"{target.replace(':', '.')}.".startswith(f"{error.name}.")
    return isinstance(error, PluginError) and error.__cause__ is None


def raised_at(target: str, error: Exception) -> str:
    """` (file:line)` of the innermost line of the package or module that a path begins with, in which its import failed; "" where none
    was run."""
    first = target.replace(":", ".").partition(".")[0]
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module that was made by hand
        return ""
    if spec is None:
        return ""
    folders = tuple(os.path.join(folder, "") for folder in spec.submodule_search_locations or ())
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == spec.origin or frame.filename.startswith(folders)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def looked_in(error: Exception) -> str:
    """Where Python looked for a module that it did not find: all folders but those of the standard library. "" where the
    error is not Python's own, which says itself what is missing."""
    if not isinstance(error, ModuleNotFoundError) or not str(error).startswith("No module named "):
        return ""
    own = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    folders = [os.path.abspath(folder) for folder in sys.path if not folder.endswith(".zip")]
    shown = [f for f in dict.fromkeys(folders) if not f.startswith(own) or "site-packages" in f]
    return (
        f"Python looked in {', '.join(shown)}; go to the folder that holds it, add that to PYTHONPATH, or install it. "
    )
