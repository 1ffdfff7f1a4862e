"""`slime recipes`: the recipes that installed distributions bring, and one of them as text."""

from __future__ import annotations

from slime_core.arguments.command_line import Parser
from slime_core.arguments.recipe_names import MARK, find_recipe, named_recipes
from slime_core.display import told
from slime_core.plugins import Plugins


def main(argv: list[str], plugins: Plugins) -> int:
    """List all recipes, or print one."""
    parser = Parser(
        prog="slime recipes", description="Recipes of installed distributions: slime check @NAME, slime train @NAME."
    )
    parser.add_argument("name", nargs="?", help="print this recipe, to change it: slime recipes NAME > mine.yaml")
    options = parser.parse_args(argv)
    if options.name:
        print(told(find_recipe(options.name).path.read_text(encoding="utf-8").rstrip("\n")))
        return 0
    recipes = named_recipes()
    width = max(map(len, recipes), default=0)
    for name, recipe in recipes.items():
        print(told(f"{MARK}{name:<{width}}  {recipe.summary}"))
    if not recipes:
        print("No installed distribution brings recipes. pip install slime-recipes brings slime's.")
    return 0
