"""`--custom-config-path`: a YAML file of values for functions of somebody's own, as slime has it. Called by `resolve`.

What no option is called by becomes `--custom-config`, whose keys those functions find as attributes of `args`
(`slime_core.plugins.own_arguments`). What is the name of an option sets it, and wins over the command line.
"""

from __future__ import annotations

from typing import Any

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import Stage, read_mapping
from slime_core.contracts.options import from_json
from slime_core.errors import ArgumentError, SlimeError


def read_custom_config(namespace: Namespace, path: str, given: Any) -> tuple[dict[str, Any], list[SlimeError]]:
    """Return the options that a file sets, `custom_config` among them, and what is wrong with it.

    Args:
        given: the value of `custom_config` so far, to which the file adds.
    """
    try:
        data = read_mapping(path, "--custom-config-path", "names to values")
    except ArgumentError as error:
        return {}, [error]
    names = {key: str(key).replace("-", "_") for key in data}
    known = {key: value for key, value in data.items() if names[key] in namespace.options}
    options, errors = Stage(path, known).read(namespace)
    if path_again := options.keys() & {"custom_config_path", "custom_config"}:
        errors.append(ArgumentError(f"--custom-config-path {path} sets {min(path_again)!r}; leave it out there."))
    own = {names[key]: value for key, value in data.items() if key not in known}
    for name in own:
        if not name.isidentifier() or name.startswith("_"):
            errors.append(
                ArgumentError(
                    f"--custom-config-path {path} sets {name!r}, which functions cannot read as an attribute of args."
                )
            )
    if isinstance(given, str):  # of the command line
        try:
            given = from_json(given)
        except ValueError:
            return options, errors  # told with the option itself
    if own:
        options["custom_config"] = {**(given if isinstance(given, dict) else {}), **own}
    return options, errors
