"""Typed, strict, frozen run arguments under slime's flat names.

option.py        how one option is declared, by the core and by plugins
groups.py        the core's own options
namespace.py     all options of core and plugins as one flat namespace
command_line.py  the flags
recipe.py        recipe files
resolve.py       merges the sources, derives the rest, reports what has no effect
"""

from slime_core.arguments.option import REQUIRED, ArgumentGroup, option

__all__ = ["REQUIRED", "ArgumentGroup", "option"]
