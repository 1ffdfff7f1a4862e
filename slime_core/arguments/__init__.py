"""Typed, strict, frozen run arguments under slime's flat names.

groups/          the core's own options, one file a group; `RunArguments`, all of them together
namespace.py     all options of core and plugins as one flat namespace
readers.py       which options the components of a run read
further.py       components that are chosen because others read the options that name them
command_line.py  the flags
elsewhere.py     options of other programs, told from mistyped ones
from_slime.py    what becomes of each option of slime
of_a_command.py  the options of a command that is no run
recipe.py        recipe files
recipe_names.py  recipes that installed distributions bring, by name
of_a_run.py      the config.yaml of a run, which is a recipe again
custom_config.py values for functions of somebody's own
rollout_paths.py paths with the number of a rollout in them
eval_config.py   evaluation sets with options of their own
derived.py       options that are known once the arguments are resolved
resolve.py       merges the sources, derives the rest

How one option is declared, by the core and by plugins, is in `slime_core.contracts.options`.
"""

from slime_core.arguments.groups import RunArguments

__all__ = ["RunArguments"]
