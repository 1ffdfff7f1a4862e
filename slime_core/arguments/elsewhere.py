"""Options of slime, Megatron and SGLang that launch scripts give and that are not available here.

Such an option is told from a mistyped one: what it is called there says nothing about what is meant here. `elsewhere.json` has
their names, {program: [name, …]}, in snake case and without "no_".
"""

from __future__ import annotations

import json
from importlib import resources

_NAMES: dict[str, frozenset[str]] = {
    program: frozenset(names)
    for program, names in json.loads(
        resources.files(__package__).joinpath("elsewhere.json").read_text(encoding="utf-8")
    ).items()
}


def of_another_program(name: str) -> str:
    """Return a sentence, with a space in front, on an option that another program has; "" if none is known to have it."""
    programs = [program for program, names in _NAMES.items() if name in names]
    if programs == ["SGLang"]:
        return f" SGLang's servers have it; here it is called --sglang-{name.replace('_', '-')}."
    if programs:
        return f" It is an option of {programs[0]} that is not available here, so leave it out."
    return ""
