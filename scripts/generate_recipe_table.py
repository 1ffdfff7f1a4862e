"""Writes the table of docs/recipes.md: `python scripts/generate_recipe_table.py`. A test fails when it is not up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- begin: scripts/generate_recipe_table.py -->", "<!-- end -->"


def page() -> str:
    """The text of the page, with the table as the recipes have it."""
    text = FILE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{_table()}\n{END}{after}"


def _table() -> str:
    lines = ["| recipe | what | train backend | engine | GPUs |", "|---|---|---|---|---|"]
    for file in sorted((ROOT / "recipes" / "src" / "slime_recipes").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        options: dict[str, Any] = yaml.safe_load(text)
        comment = " ".join(
            line.removeprefix("# ") for line in text.split("\n#\n")[0].splitlines() if line.startswith("# ")
        )
        what = comment.partition(". ")[0].rstrip(".")
        train = options.get("actor_num_nodes", 1) * options.get("actor_num_gpus_per_node", 1)
        own = (
            ""
            if options.get("colocate") or not options.get("rollout_num_gpus")
            else f" + {options['rollout_num_gpus']}"
        )
        link = f"[`@{file.stem}`](../{file.relative_to(ROOT).as_posix()})"
        engine = options.get("rollout_engine", "–")
        lines.append(f"| {link} | {what} | {options.get('train_backend', 'torch')} | {engine} | {train}{own} |")
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
    print(f"wrote {FILE}")
