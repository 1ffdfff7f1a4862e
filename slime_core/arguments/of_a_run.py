"""A run's `config.yaml` is a recipe again: `slime train RUN/config.yaml` repeats the run. Called by `slime_core.arguments.recipe`.

What somebody set is set again; what followed from it follows again. The new run writes into folders of its own, beside those of the
earlier one, and begins where that began.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from slime_core.arguments.namespace import Namespace
from slime_core.secrets import MASK

_WRITTEN = (
    "run_dir",
    "save",
    "save_hf",
    "save_debug_rollout_data",
    "save_debug_train_data",
    "dump_details",
    "tensorboard_dir",
)
"""Options that name what a run writes, which belongs to it alone."""
OWN_FOLDERS = frozenset(_WRITTEN) - {"run_dir"}
"""Those of them that no other run may name; of a run directory, what an earlier run left is set aside."""
_READ = ("custom_config_path", "eval_config")
"""Options that name files whose values are among the arguments already."""


def is_of_a_run(data: Mapping[Any, Any]) -> bool:
    """Whether the mapping of a YAML file is a run's `config.yaml`."""
    return isinstance(data.get("arguments"), dict) and isinstance(data.get("provenance"), dict)


def to_repeat(data: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What repeats the run of a `config.yaml`.

    Returns:
        the options that were set, by name; and those that had their defaults, which may be others by now. Passwords are masked in the
        file and left out: they come from the environment or the command line again.
    """
    arguments, provenance = data["arguments"], data["provenance"]
    known = {name: value for name, value in arguments.items() if MASK not in str(value) and name not in _READ}
    given = {name: value for name, value in known.items() if not _follows(provenance.get(name, "default"))}
    defaults = {name: value for name, value in known.items() if provenance.get(name, "default") == "default"}
    fresh = {name: beside(given[name]) for name in _WRITTEN if given.get(name)}
    for outer in ("save", "run_dir"):  # what lies in such a folder lies in the new one
        inside = [name for name in fresh if outer in fresh and _is_below(given[name], given[outer])]
        fresh |= {
            name: os.path.normpath(os.path.join(fresh[outer], os.path.relpath(given[name], given[outer])))
            for name in inside
        }
    if given.get("load") and _same(given["load"], arguments.get("save")):  # it would go on where the earlier run ended
        fresh["load"] = fresh["save"]
        given.pop("ckpt_step", None)
    return {**given, **fresh}, defaults


def changed(defaults: Mapping[str, Any], namespace: Namespace) -> dict[str, Any]:
    """Those of the values that were defaults then and are none now."""
    options = {name: option for name, option in namespace.options.items() if name in defaults and not option.required}
    return {name: defaults[name] for name, option in options.items() if _plain(option.default) != defaults[name]}


def beside(path: str) -> str:
    """The first free one of PATH-2, PATH-3 and so on. Of a path with {rollout_id} the folder before that gets the number."""
    parts = Path(path).parts
    fixed = next((i for i, part in enumerate(parts) if "{" in part), len(parts))
    if not fixed:
        return path
    folder, rest = os.path.join(*parts[:fixed]), parts[fixed:]
    number = next(n for n in count(2) if not os.path.lexists(f"{folder}-{n}"))
    return os.path.join(f"{folder}-{number}", *rest)


def _follows(provenance: str) -> bool:
    return provenance == "default" or provenance.startswith("derived")


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, str) and isinstance(other, str) and os.path.abspath(one) == os.path.abspath(other)


def _is_below(path: str, folder: str) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _plain(value: Any) -> Any:
    """A default as it stands in a `config.yaml`."""
    return json.loads(json.dumps(value, default=str))
