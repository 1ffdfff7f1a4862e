"""Writes slime_core/plugins/catalogue.json: `python scripts/generate_catalogue.py`. A test fails when it is not up to date.

All distributions of the repository (the root, slime_*/ and plugins/*/, not the examples) must be installed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from slime_core.arguments.namespace import Namespace
from slime_core.contracts.kinds import KINDS
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import IMPORT, RECIPE
from slime_core.plugins.discovery import discover

ROOT = Path(__file__).parent.parent
RECIPES = "slime-recipes"
"""Brings files and no plugin."""
FILE = ROOT / "slime_core" / "plugins" / "catalogue.json"


def distributions() -> list[str]:
    """The names of slime's own distributions."""
    return [project["project"]["name"] for project in _projects()]


def _projects() -> list[dict[str, Any]]:
    paths = [ROOT / "pyproject.toml", *ROOT.glob("slime_*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
    paths.append(ROOT / "recipes" / "pyproject.toml")
    return [tomllib.loads(path.read_text(encoding="utf-8")) for path in paths]


def catalogue() -> str:
    """The text of the whole file."""
    own = set(distributions())
    plugins = Plugins([info for info in discover() if canonicalize_name(info.distribution) in own])
    namespace = Namespace(plugins)
    if failed := [f"{info.label}: {info.reason}" for info in plugins.infos if info.status != "loaded"]:
        raise SystemExit(f"These plugins failed to load: {'; '.join(failed)}")
    if missing := own - {info.distribution for info in plugins.infos} - {RECIPES}:
        raise SystemExit(f"These distributions are not installed: {', '.join(sorted(missing))}")
    found = {kind: dict(sorted(_names(plugins, kind))) for kind in sorted(KINDS)}
    found["option"] = dict(sorted(_options(namespace)))
    found[IMPORT] = dict(sorted(_imports()))
    found[RECIPE] = dict(sorted(_recipes()))
    return json.dumps({kind: names for kind, names in found.items() if names}, indent=1) + "\n"


def _names(plugins: Plugins, kind: str) -> Iterator[tuple[str, str]]:
    """(name or alias, distribution) of all components of a kind."""
    for provided in plugins.components(kind).values():
        for name in (provided.name, *provided.aliases):
            yield name, provided.plugin.distribution


def _recipes() -> Iterator[tuple[str, str]]:
    """(name, distribution) of all recipes."""
    for file in ROOT.glob("recipes/src/*/*.yaml"):
        yield file.stem, RECIPES


def _imports() -> Iterator[tuple[str, str]]:
    """(import name, distribution) of all packages that are not called like their distribution."""
    for project in _projects():
        name = project["project"]["name"]
        for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
            if Path(package).name != name.replace("-", "_"):
                yield Path(package).name, name


def _options(namespace: Namespace) -> Iterator[tuple[str, str]]:
    """(name, distribution) of all options that do not come with the core, families of options as "prefix*"."""
    for option in namespace.options.values():
        if option.distribution != "slime-core":
            yield option.name, option.distribution
            for prefix in option.group.families:
                yield f"{prefix}*", option.distribution


if __name__ == "__main__":
    FILE.write_text(catalogue(), encoding="utf-8")
    print(f"wrote {FILE}")
