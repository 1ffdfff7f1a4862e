"""Which of slime's own distributions brings a component, a command or an option that is not installed.

`catalogue.json` is written by `scripts/generate_catalogue.py` from what the distributions of the repository provide:
{kind: {name or alias: distribution}}. Options of plugins are there as the kind "option"; a name that ends with "*" stands for
all options that begin with it. The kind "import" has import names that are not those of their distributions, the kind "recipe" recipes by name.
"""

from __future__ import annotations

import json
from collections.abc import Container
from importlib import resources

_CATALOGUE: dict[str, dict[str, str]] = json.loads(
    resources.files(__package__).joinpath("catalogue.json").read_text(encoding="utf-8")
)

_ELSEWHERE = {
    ("reward", "ifbench"): " slime's 'ifbench' grades with IFBench, which no distribution brings: put a clone of "
    "https://github.com/allenai/IFBench and its requirements on PYTHONPATH, and call it in a reward of your own "
    "(--custom-rm-path), as docs/rewards.md shows."
}
"""What slime has and no distribution of ours: how to get it, a sentence with a space in front."""

FIRST_PARTY = frozenset(distribution for names in _CATALOGUE.values() for distribution in names.values())
"""The names of slime's own distributions."""


IMPORT, RECIPE = "import", "recipe"
"""The kinds of import names and of recipes in the catalogue."""


def imports() -> dict[str, str]:
    """{import name: the one of slime's own distributions that provides it}, of names that are not those of distributions."""
    return _CATALOGUE.get(IMPORT, {})


def brought_by(kind: str, name: str) -> str:
    """The one of slime's own distributions that brings the component `name` of a kind; "" if none does."""
    names = _CATALOGUE.get(kind, {})
    families = (d for pattern, d in names.items() if pattern.endswith("*") and name.startswith(pattern[:-1]))
    return names.get(name) or next(families, "")


def where_to_get(kind: str, name: str, installed: Container[str]) -> str:
    """The sentence that tells how to get the component `name` of a kind: " slime-torch brings it: pip install …".

    Args:
        installed: distributions that are here, so that installing them cannot help.

    Returns:
        the sentence with a space in front, or "" if none of slime's own distributions would help.
    """
    if (kind, name) in _ELSEWHERE:
        return _ELSEWHERE[kind, name]
    distribution = brought_by(kind, name)
    if not distribution or distribution in installed:
        return ""
    return f" {distribution} brings it: pip install {distribution}."
