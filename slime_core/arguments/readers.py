"""Which options the components of a run read, as they declare it; what was set and is read by nothing.

A declaration is a name of an option or of a whole group, with a condition behind "?" where the option counts only then;
see `slime_core.contracts.options.reads_options`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from slime_core.arguments.groups.evaluation import args_of_set
from slime_core.contracts.options import ArgumentGroup

if TYPE_CHECKING:
    from slime_core.arguments.namespace import Namespace, Option
    from slime_core.arguments.resolve import Resolved
    from slime_core.plugins import Plugins, Selected


def options_read(declared: Sequence[str], model: type[BaseModel]) -> dict[str, str]:
    """Take the groups in a declaration apart, and return {option: the condition under which it is read, "" for always}.

    Args:
        declared: what one component declares.
        model: of the run's arguments; its groups are looked up in it.
    """
    groups = {base.__name__: base for base in model.__mro__ if issubclass(base, ArgumentGroup)}
    found: dict[str, str] = {}
    for entry in declared:
        name, _, condition = entry.partition("?")
        group = groups.get(name)
        own = [name] if group is None else group.__annotations__
        found |= dict.fromkeys((n for n in own if n in model.model_fields), condition)
    return found


def unknown_names(declared: Sequence[str], model: type[BaseModel]) -> list[str]:
    """What a component declares to read and no installed distribution defines: neither an option nor a group."""
    known = {*model.model_fields, *(base.__name__ for base in model.__mro__)}
    return sorted({entry.partition("?")[0] for entry in declared} - known)


def unmet(args: BaseModel, conditions: Sequence[str]) -> str:
    """Say in words that none of these conditions holds, such as "without --use-tis"; "" if one of them does.

    Args:
        conditions: names of options that must be set, or "!name" for one that must not; "" always holds.
    """
    if any(not c or bool(getattr(args, c.lstrip("!"), False)) != c.startswith("!") for c in conditions):
        return ""
    names = " or ".join("--" + condition.lstrip("!").replace("_", "-") for condition in dict.fromkeys(conditions))
    return f"{'with' if conditions[0].startswith('!') else 'without'} {names}"


def is_read(name: str, selected: Iterable[Selected[Any]], args: BaseModel) -> bool:
    """Whether one of these components declares that it reads the option, under a condition that holds or none."""
    return any(
        name in read and not unmet(args, [read[name]])
        for component in selected
        for read in [options_read(component.reads_options or (), type(args))]
    )


def without_effect(resolved: Resolved, selected: Sequence[Selected[Any]], plugins: Plugins) -> list[str]:
    """One sentence for every option that somebody set, for the run or for an evaluation set, and that nothing in this run reads.

    An option that no installed component declares may be read by anything, such as an observer.

    Args:
        selected: the chosen components.
    """
    readers = _Readers(resolved.namespace, plugins, selected)
    args, options, found = resolved.args, resolved.namespace.options, []
    given = [(options[name], args, "") for name in resolved.set_by_user if getattr(args, name) != options[name].default]
    for name, own in args.eval_set_options.items():
        of_set, where = args_of_set(args, name), f" of the evaluation set {name!r}"
        given += [(options[key], of_set, where) for key, value in own.items() if key in options and value is not None]
    for option, values, where in given:
        if not (known := readers.of(option.name)):
            continue
        conditions = readers.conditions(option)
        if not conditions:
            found.append(
                f"{option.flag}{where} has no effect: it is read by {' or '.join(known)}, which this run does not use."
            )
        elif why := unmet(values, conditions) or unmet(values, (option.when or "").split("|")):
            found.append(f"{option.flag}{where} has no effect {why}.")
    return found


def in_effect(resolved: Resolved, selected: Sequence[Selected[Any]], plugins: Plugins) -> set[str]:
    """The names of all options that the core or one of the chosen components reads in this run, and of those that no installed
    component declares, which anything may read.

    Args:
        selected: the chosen components.
    """
    readers, found = _Readers(resolved.namespace, plugins, selected), set()
    for name, option in resolved.namespace.options.items():
        conditions = readers.conditions(option)
        if not readers.of(name) or (conditions and not unmet(resolved.args, conditions)):
            found.add(name)
    return found


class _Readers:
    """What all installed components declare, and who of them is chosen."""

    def __init__(self, namespace: Namespace, plugins: Plugins, selected: Sequence[Selected[Any]]) -> None:
        """Args:
        selected: the chosen components. One that declares nothing may read whatever the installed ones of its kind do.
        """
        self._options = namespace.options
        self._installed = [
            (component.kind, component.name, options_read(component.reads_options or (), namespace.model))
            for component in plugins.all_components()
        ]
        self._chosen: list[dict[str, str]] = []
        for component in selected:
            if component.reads_options is not None:
                self._chosen.append(options_read(component.reads_options, namespace.model))
            else:
                self._chosen += [read for kind, _, read in self._installed if kind == component.kind]

    def of(self, name: str) -> list[str]:
        """Who reads the option: "the core", or components as "kind name"."""
        core = ["the core"] if self._options[name].read_by_core is not False else []
        return core + [f"the {kind} {own!r}" for kind, own, read in self._installed if name in read]

    def conditions(self, option: Option) -> list[str]:
        """Under which conditions the core and the chosen components read the option, one for each that does."""
        by_core = option.read_by_core
        own = [] if by_core is False else [by_core if isinstance(by_core, str) else ""]
        return own + [read[option.name] for read in self._chosen if option.name in read]
