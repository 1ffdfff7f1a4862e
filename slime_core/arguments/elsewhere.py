"""Options of slime, Megatron and SGLang that launch scripts give and that are not available here.

Such an option is told from a mistyped one: what it is called there says nothing about what is meant here. `from_slime.toml`
has a sentence for every option of slime; of the others, `elsewhere.json` has the names, {program: [name, …]}, in snake case
and without "no_".
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from slime_core.arguments.from_slime import fate_of


def of_another_program(name: str) -> str:
    """Return sentences, with a space in front, on an option that another program has; "" if none is known to have it."""
    fate = fate_of(name)
    if fate is not None:
        program = "Megatron" if fate.name in _names()["Megatron"] else "slime"
        return f" It is an option of {program}. {fate.text or 'It is not available in this installation.'}"
    programs = programs_with(name)
    if programs == ["SGLang"]:
        return f" SGLang's servers have it; here it is called --sglang-{name.replace('_', '-')}."
    if programs:
        return f" It is an option of {programs[0]} that is not available here, so leave it out."
    return ""


def programs_with(name: str) -> list[str]:
    """Which of Megatron and SGLang have an option of this name."""
    return [program for program, names in _names().items() if name in names]


@cache
def _names() -> dict[str, frozenset[str]]:
    text = resources.files(__package__).joinpath("elsewhere.json").read_text(encoding="utf-8")
    return {program: frozenset(names) for program, names in json.loads(text).items()}
