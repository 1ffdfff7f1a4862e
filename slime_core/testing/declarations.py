"""The checks of what a component says about itself: documentation, options that it reads, names of its members."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from slime_core.arguments.readers import options_read, unknown_names
from slime_core.contracts.kinds import KINDS
from slime_core.errors import did_you_mean
from slime_core.plugins import Selected
from slime_core.plugins.signatures import near_misses
from slime_core.testing.findings import Finding, verdict
from slime_core.testing.subject import Subject

REPAIR = (
    'in reads_options=(…) of its Lazy, or in @reads_options(…), name options as in code ("my_option") and groups by '
    "the name of their class."
)


def documented(part: str, component: Any) -> Finding:
    """Return whether a component has a docstring of its own."""
    own = (component.__doc__ if inspect.isclass(component) else inspect.getdoc(component)) or ""
    problem = "" if own.strip() else "it has no docstring; say in a sentence what it does and what it raises."
    return verdict(part, "is documented", problem)


def named_as_called(part: str, subject: Subject[Any]) -> Finding:
    """Return whether a component has no member that nearly has the name of one that slime would call."""
    misses = near_misses(KINDS[subject.kind], subject.target)
    problem = f"{'; '.join(misses)} Rename it: to that, or to a name that cannot be taken for it." if misses else ""
    return verdict(part, "has no member whose name is nearly one that slime knows", problem)


def declares_what_exists(part: str, subject: Subject[Any]) -> Finding:
    """Return whether every option and group that a component declares to read exists."""
    declared, namespace = subject.selected.reads_options or (), subject.namespace
    unknown = unknown_names(declared, namespace.model)
    if subject.selected.distribution in {o.distribution for o in namespace.options.values() if o.group.families}:
        # The group of a family exists as soon as somebody sets an option of it.
        unknown = [name for name in unknown if name.islower()]
    conditions = {entry.partition("?")[2].lstrip("!") for entry in declared} - {""}
    unknown += sorted(conditions - namespace.options.keys())
    known = [*namespace.options, *{option.group.__name__ for option in namespace.options.values()}]
    problems = [f"{name!r} is neither an option nor a group of options.{did_you_mean(name, known)}" for name in unknown]
    return verdict(part, "declares options that exist", f"{' '.join(problems)} Repair it: {REPAIR}" if problems else "")


def reads_what_it_declares(part: str, subject: Subject[Any]) -> Finding:
    """Return whether a component that ran in all checks has read no option of a plugin but those that it declares."""
    declared = _declared([subject.selected, *subject.helpers], subject)
    problem = ""
    if undeclared := sorted(subject.read - declared):
        flags = ", ".join("--" + name.replace("_", "-") for name in undeclared)
        problem = (
            f"it reads {flags} and does not declare to, so a run that sets it would say that it has no effect. Add it: "
            f"{REPAIR}"
        )
    return verdict(part, "reads no option of a plugin that it does not declare", problem)


def _declared(components: Iterable[Selected[Any]], subject: Subject[Any]) -> set[str]:
    """Return the options that these components declare together, or all that there are if one declares nothing."""
    found: set[str] = set()
    for component in components:
        if component.reads_options is None:
            return set(subject.namespace.options)
        found |= options_read(component.reads_options, subject.namespace.model).keys()
    return found
