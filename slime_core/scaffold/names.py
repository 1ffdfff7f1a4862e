"""Which names a new package may have."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec

from packaging.utils import canonicalize_name

from slime_core.errors import ArgumentError
from slime_core.plugins.catalogue import FIRST_PARTY, imports

LONGEST_NAME = 40
"""Characters; the lines of the templates leave room for so many."""


def checked_name(given: str) -> str:
    """Return the normal form of a distribution's name.

    Raises:
        ArgumentError: pip or Python could not use it, or it is taken.
    """
    name = str(canonicalize_name(given))
    package = name.replace("-", "_")
    problem = ""
    if not re.fullmatch(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]", given):
        problem = "a name has letters, digits and single '-', begins with a letter and ends with a letter or digit"
    elif len(name) > LONGEST_NAME:
        problem = f"it has {len(name)} characters, {LONGEST_NAME} are the most"
    elif not package.isidentifier() or keyword.iskeyword(package):
        problem = f"Python could not import a package called {package!r}"
    elif package in sys.stdlib_module_names:
        problem = f"the package {package!r} would hide Python's own module"
    elif name in FIRST_PARTY:
        problem = "it is one of slime's own distributions"
    elif package in imports():
        problem = f"the package {package!r} would hide that of {imports()[package]}"
    elif file := _file_of(package):
        problem = f"the package {package!r} would hide {file}"
    if problem:
        raise ArgumentError(f"{given!r} cannot be the name of a package: {problem}. Choose one such as 'my-reward'.")
    return name


def _file_of(package: str) -> str | None:
    """The file that is imported under this name; None if there is none, or merely a folder without `__init__.py`."""
    spec = find_spec(package)
    return spec.origin if spec else None
