"""Recipes of common runs, found by name (`slime_core.arguments.recipe_names`). There is no code here.

*.yaml          the recipes, each with its options and what differs from the run that it is made after
models/NAME/    config.json of the models that they name, for checks where the models themselves are not
"""

__version__ = "0.1.0"
