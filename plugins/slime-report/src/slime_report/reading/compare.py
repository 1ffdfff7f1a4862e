"""Options in which runs differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slime_report.report import Difference

NOT_TOLD = frozenset({"run_dir", "save", "load", "save_hf", "chat_template_date", "dump_details", "tensorboard_dir"})
"""Options that differ in every run and say nothing."""
_ABSENT = "(not there)"


def differences_of(arguments: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The options that do not have the same value in all runs, by name."""
    names = sorted({name for own in arguments for name in own} - NOT_TOLD)
    found = []
    for name in names:
        values = [option_in_words(own[name]) if name in own else _ABSENT for own in arguments]
        if len(set(values)) > 1:
            found.append(Difference(option_name(name), values))
    return found


def option_name(name: str) -> str:
    """An option as it is written on the command line."""
    return "--" + name.replace("_", "-")


def option_in_words(value: Any) -> str:
    """The value of an option as it would be given."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
