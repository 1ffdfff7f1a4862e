"""transformers looks through the files of all its models once in a process, and quickly. Called by the command line and by Ray actors, before
anything imports transformers.

For its lazy imports it reads the 1,600 files of its models for the names that they give out: when it is imported, and again when its
first model is. It keeps what it found in each folder, but in the last 128 folders only, and has 500, so that the second look
finds nothing kept; and it asks every line of a file whether the list of names begins there. Half a second of the six until a run
has trained its first step. What it finds stays the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODULE = "transformers.utils.import_utils"


def look_once_through_models() -> None:
    """Let transformers, when it is imported, keep what it finds in all folders. Where it has been imported, or looks in another way,
    nothing changes."""
    if _MODULE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds one module as Python does, and changes it when it has been run. Then it is gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        loader: Any = spec.loader if spec else None
        if loader is not None:
            run = loader.exec_module

            def run_and_change(module: Any) -> None:
                run(module)
                _change(module)

            loader.exec_module = run_and_change
        return spec


def _change(module: Any) -> None:
    look = getattr(getattr(module, "create_import_structure_from_path", None), "__wrapped__", None)
    if look is not None:
        module.create_import_structure_from_path = lru_cache(maxsize=None)(look)
    names = getattr(module, "fetch__all__", None)
    if names is not None:
        module.fetch__all__ = _from_the_last_list(names)


def _from_the_last_list(names: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """The same function of a file's content, which takes the last line that begins with `__all__` and what is behind it, and so needs
    no more to read."""

    def of(content: str) -> list[str]:
        return names(content[content.rfind("\n__all__") + 1 :])

    return of
