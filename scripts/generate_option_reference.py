"""Writes docs/options.md from the options of all distributions: `python scripts/generate_option_reference.py`. A test fails
when it is not up to date.

All distributions of the repository (the root, slime_*/ and plugins/*/, not the examples) must be installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from slime_core.arguments.namespace import Namespace, Option
from slime_core.arguments.readers import options_read
from slime_core.contracts.kinds import KINDS, OBSERVERS
from slime_core.contracts.options import ArgumentGroup
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import FIRST_PARTY
from slime_core.plugins.discovery import discover

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

INTRODUCTION = """
# Options

<!-- Written by scripts/generate_option_reference.py from the option groups; do not edit. -->

Every option of slime and of its own plugins. An option is a flag of `slime train`, `slime train-async` and `slime check`, and,
with underscores in place of dashes, a key of a recipe. A flag wins over an environment variable, that over the recipe.
A flag without a value has its opposite: `--colocate`, `--no-colocate`. `slime check` shows what an option is in a run, and
reports options that have no effect there.

**Read by** names who looks at the option: the core in every run, or components in the runs that choose them. **Result** says
whether the option can change the trained weights; those that cannot may differ when a run is resumed.
""".strip()

TYPES = {str: "text", SecretStr: "text", int: "integer", float: "number"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole page."""
    plugins = Plugins([info for info in discover() if info.distribution in FIRST_PARTY])
    namespace = Namespace(plugins)
    if failed := [f"{info.label}: {info.reason}" for info in plugins.infos if info.status != "loaded"]:
        raise SystemExit(f"These plugins failed to load: {'; '.join(failed)}")
    readers = _Readers(plugins, namespace)
    groups: dict[type[ArgumentGroup], list[Option]] = {}
    for option in namespace.options.values():
        groups.setdefault(option.group, []).append(option)
    parts = [INTRODUCTION]
    for group, options in groups.items():
        title, _, text = inspect.cleandoc(group.__doc__ or group.__name__).partition("\n")
        rows = ["| option | value | default | what it does | read by | result |", "|---|---|---|---|---|---|"]
        rows += [_row(option, readers) for option in options]
        parts += [f"## {title.rstrip('.')}", f"`{group.__name__}` of {options[0].distribution}.", text.strip()]
        parts += [_family(prefix) for prefix in group.families]
        parts.append("\n".join(rows))
    return "\n\n".join(part for part in parts if part) + "\n"


class _Readers:
    """Who reads which option, as the installed components declare it."""

    def __init__(self, plugins: Plugins, namespace: Namespace) -> None:
        self._declared = [
            (component.kind, component.name, options_read(component.reads_options or (), namespace.model))
            for component in plugins.all_components()
        ]
        self._observing = {info.distribution for info in plugins.infos if set(info.hooks) & set(OBSERVERS)}

    def of(self, option: Option) -> str:
        """The core, or components by kind, each with the condition under which it reads the option; for one that none of these
        declares, the observers of its own distribution."""
        found = []
        if option.read_by_core is not False:
            condition = option.read_by_core if isinstance(option.read_by_core, str) else ""
            found.append(" ".join(["core", *_in_words(condition)]))
        for kind in KINDS:
            names: dict[str, list[str]] = {}
            for own_kind, name, read in self._declared:
                if own_kind == kind and option.name in read:
                    names.setdefault(read[option.name], []).append(f"`{name}`")
            for condition, listed in names.items():
                found.append(" ".join([kind.replace("_", " "), ", ".join(listed), *_in_words(condition)]))
        if not found and option.distribution in self._observing:
            found.append("observers")
        return "; ".join(found)


def _row(option: Option, readers: _Readers) -> str:
    meaning = option.field.description or ""
    if option.when:
        conditions = [word for part in option.when.split("|") for word in _in_words(part)]
        meaning += f" Has an effect only {' or '.join(conditions)}."
    if option.env:
        meaning += f" Environment variable: `{option.env}`."
    affects = "yes" if option.affects_result else "no"
    cells = [f"`{option.flag}`", _value(option), _default(option), meaning, readers.of(option), affects]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _in_words(condition: str) -> Iterator[str]:
    """The condition "name" or "!name" as "with --name" or "without --name"; nothing for an empty one."""
    if condition:
        word = "without" if condition.startswith("!") else "with"
        yield f"{word} `--{condition.lstrip('!').replace('_', '-')}`"


def _value(option: Option) -> str:
    """What may be given: a type with its limits, or the choices."""
    if option.is_flag:
        return "flag"
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if option.is_list:
        (item,) = option.base_type.__args__
        return f"{TYPES.get(item, 'text')} …"
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in option.field.metadata
        for name, sign in SIGNS.items()
        if hasattr(limit, name)
    ]
    return " ".join([TYPES.get(option.base_type, "text"), ", ".join(limits)]).strip()


def _default(option: Option) -> str:
    default: Any = option.default
    if option.required:
        return "required"
    if default is None or default == []:
        return ""
    if option.is_flag:
        return "on" if default else "off"
    return f"`{default}`" if not isinstance(default, list) else " ".join(f"`{item}`" for item in default)


def _family(prefix: str) -> str:
    return (
        f"Flags that begin with `--{prefix.replace('_', '-')}` and are not listed here are the options of the installed program, "
        "checked when a run is planned."
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
