"""Recipes by name: `@qwen3-4b-grpo` is a file of an installed distribution.

A distribution offers recipes by an entry point of the group `slime.recipes`, which names a package of files; no code of it runs:

    [project.entry-points."slime.recipes"]
    mine = "my_recipes"

    my_recipes/my-run.yaml                        the recipe @my-run; its first comment says what it is
    my_recipes/models/Qwen3-4B/config.json        the shape of a model, for checks where the model itself is not
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from slime_core.errors import ArgumentError, did_you_mean
from slime_core.plugins.catalogue import FIRST_PARTY, RECIPE, where_to_get

GROUP = "slime.recipes"
MARK = "@"


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe that a distribution brings.

    Attributes:
        name: behind the @.
        path: its file.
        distribution: that brings it.
    """

    name: str
    path: Path
    distribution: str

    @property
    def summary(self) -> str:
        """The first sentence of its first comment."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# "):
                break
            lines.append(line.removeprefix("# "))
        return " ".join(lines).partition(". ")[0].rstrip(".:")


def named_recipes() -> dict[str, NamedRecipe]:
    """All recipes of installed distributions by name, sorted. One that several bring is there as DISTRIBUTION:NAME for each, and
    under its name alone it is that of slime's own distribution."""
    found = [
        NamedRecipe(file.stem, file, distribution)
        for distribution, folder in _folders()
        for file in sorted(folder.glob("*.yaml"))
    ]
    counts = Counter(recipe.name for recipe in found)
    named = {}
    for recipe in found:
        if counts[recipe.name] > 1:
            named[f"{recipe.distribution}:{recipe.name}"] = recipe
        if counts[recipe.name] == 1 or canonicalize_name(recipe.distribution) in FIRST_PARTY:
            named[recipe.name] = recipe
    return dict(sorted(named.items()))


def find_recipe(name: str) -> NamedRecipe:
    """The recipe of a name.

    Args:
        name: with or without the @.

    Raises:
        ArgumentError: there is none; offers the nearest name.
    """
    known, wanted = named_recipes(), name.removeprefix(MARK)
    if wanted in known:
        return known[wanted]
    if hint := where_to_get(RECIPE, wanted, {recipe.distribution for recipe in known.values()}):
        raise ArgumentError(f"The recipe {MARK}{wanted} is not installed.{hint}")
    several = [key for key in known if key.endswith(f":{wanted}")]
    if several:
        raise ArgumentError(
            f"Several distributions bring a recipe {wanted!r}. Say which: {', '.join(MARK + key for key in several)}."
        )
    raise ArgumentError(
        f"There is no recipe {MARK}{wanted}.{did_you_mean(wanted, known)} `slime recipes` lists all of them; a file is given by its "
        "path, without @."
    )


def model_card(folder: str) -> Path | None:
    """The folder with the configuration of a model that is called like the folder of a checkpoint, of an installed distribution."""
    for _, own in _folders():
        card = own / "models" / Path(folder).name
        if (card / "config.json").is_file():
            return card
    return None


def _folders() -> list[tuple[str, Path]]:
    """(distribution, folder of a package) of all entry points, slime's own first. No package is imported."""
    found: dict[tuple[bool, str, str], Path] = {}
    for entry in metadata.entry_points(group=GROUP):
        try:
            spec = importlib.util.find_spec(entry.value)
        except (ImportError, ValueError):
            continue
        distribution = entry.dist.name if entry.dist else "unknown"
        for place in (spec.submodule_search_locations or ()) if spec else ():
            found.setdefault(
                (canonicalize_name(distribution) not in FIRST_PARTY, distribution, entry.value), Path(place)
            )
    return [(distribution, folder) for (_, distribution, _), folder in sorted(found.items())]
