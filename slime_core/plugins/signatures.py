"""Does a component keep the contract of its kind? Compared by signature, before anything runs."""

from __future__ import annotations

import builtins
import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from slime_core.contracts.kind import Kind
from slime_core.contracts.kinds import KINDS

_NEAR = 0.85
"""How alike two names must be (`difflib`) for one to be taken for the other."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def problems(component: Any, contract: Callable[..., Any], extras: tuple[str, ...] = ()) -> list[str]:
    """Everything in which `component` differs from `contract`, as sentences; empty when it fits.

    A function contract asks for a callable that takes the contract's parameters by position, whatever it calls them; a name of
    the contract in another place is a mistake. Parameters with a default in the contract, and `extras`, go by their names.
    A class contract asks for a class (or factory) with the contract's public methods, each of which fits.
    """
    if inspect.isclass(contract):
        if not inspect.isclass(component):
            return [f"it is a {type(component).__name__}, expected a class like {contract.__name__}"]
        found = []
        for name, method in inspect.getmembers(contract, inspect.isfunction):
            if name.startswith("_") and name not in ("__init__", "__len__"):
                continue
            own = getattr(component, name, None)
            if own is None or own is getattr(object, name, None):
                found.append(f"it has no method {name}{inspect.signature(method)}")
            elif callable(own):
                found += [
                    f"{name}: {text}" for text in _call_problems(own, method, extras if name == "__init__" else ())
                ]
        return found
    if not callable(component):
        return [
            f"it is a {type(component).__name__}, expected a function {contract.__name__}{inspect.signature(contract)}"
        ]
    return _call_problems(component, contract, extras)


def ability_problems(component: Any, abilities: tuple[type, ...]) -> list[str]:
    """Everything in which a class's members differ from the abilities whose names they have, as sentences."""
    if not inspect.isclass(component):
        return []
    return [
        f"{name}: {text}"
        for ability in abilities
        for name, method in inspect.getmembers(ability, inspect.isfunction)
        if not name.startswith("_") and callable(own := getattr(component, name, None))
        for text in _call_problems(own, method, ())
    ]


def near_misses(kind: Kind, component: Any) -> list[str]:
    """Names on a component that nearly are those of abilities or marks, which would do nothing, as sentences."""
    if inspect.isclass(component):
        known = {name for ability in kind.abilities for name in _members(ability)}
        names = [name for name in dir(component) if not name.startswith("_")]
        taken = known | set(_members(kind.contract))
    else:
        known = {*kind.marks, "reads_options"}
        names, taken = [name for name in getattr(component, "__dict__", {}) if not name.startswith("__")], known
    return [
        f"the {kind.name} {getattr(component, '__name__', '?')} has {name!r}, which nothing calls; did it mean {near[0]!r}?"
        for name in names
        if name not in taken and (near := difflib.get_close_matches(name, sorted(known), 1, _NEAR))
    ]


def _members(protocol: Any) -> list[str]:
    own = [
        name
        for base in protocol.__mro__
        if base is not object
        for name in (*vars(base), *inspect.get_annotations(base))
    ]
    return [name for name in own if not name.startswith("_")]


def accepted_extras(component: Any, extras: tuple[str, ...], whole: bool = False) -> list[str]:
    """Which of `extras` the component names among its parameters.

    Args:
        whole: one that takes any keyword arguments (`**kwargs`) gets all of them.
    """
    parameters = inspect.signature(component).parameters
    takes_all = whole and any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in extras if takes_all or name in parameters]


def _annotation_problem(own: Any, wanted: Any) -> str | None:
    """A difference between two annotations, as far as their names tell; None where one is missing or says little."""
    mine, theirs = _annotation_name(own), _annotation_name(wanted)
    if not mine or not theirs or "Any" in (mine, theirs) or mine == theirs:
        return None
    # Only plain names are compared: unions, protocols and type variables may well fit, and so may a class of somebody else's.
    known = mine in _contract_names() or hasattr(builtins, mine)
    return f"{mine}, expected {theirs}" if known and theirs.isidentifier() else None


@functools.cache
def _contract_names() -> frozenset[str]:
    """The plain names among the annotations of all contracts that are functions."""
    functions = [row.contract for row in KINDS.values() if not inspect.isclass(row.contract)]
    found = (_annotation_name(note) for function in functions for note in inspect.get_annotations(function).values())
    return frozenset(name for name in found if name.isidentifier())


def _annotation_name(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.strip("'\"").rsplit(".", 1)[-1] if "[" not in text else text


def _call_problems(own: Callable[..., Any], contract: Callable[..., Any], extras: tuple[str, ...]) -> list[str]:
    try:
        have = inspect.signature(own).parameters
    except (TypeError, ValueError):
        return []  # builtins without a signature cannot be checked
    want = inspect.signature(contract).parameters
    takes_any_keyword = any(p.kind is p.VAR_KEYWORD for p in have.values())
    takes_any_positional = any(p.kind is p.VAR_POSITIONAL for p in have.values())
    positional = [name for name, p in have.items() if p.kind in _POSITIONAL]
    wanted = [name for name, p in want.items() if p.kind in _POSITIONAL]
    found, passed = [], set(wanted)
    for position, name in enumerate(wanted):
        given_as = name
        if name in positional:
            if positional.index(name) != position and not takes_any_positional:
                found.append(
                    f"parameter {name!r} is number {positional.index(name) + 1}, expected number {position + 1}"
                )
        elif want[name].default is not inspect.Parameter.empty:
            if name not in have and not takes_any_keyword and not takes_any_positional:
                found.append(f"it does not take the parameter {name!r}")
        elif position < len(positional) and positional[position] not in (*wanted, *extras):
            given_as = positional[position]
            passed.add(given_as)
        elif not takes_any_positional:
            by_name = " by position" if name in have else ""
            found.append(f"it does not take the parameter {name!r}{by_name}")
        # What `args` is called is everybody's own: any group of options, or a class of several.
        if (
            given_as in have
            and name != "args"
            and (problem := _annotation_problem(have[given_as].annotation, want[name].annotation))
        ):
            found.append(f"parameter {given_as!r} is annotated {problem}")
    for name, parameter in have.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if name not in passed and required and name not in extras:
            found.append(f"it requires a parameter {name!r} that nothing passes")
    if problem := _annotation_problem(
        inspect.signature(own).return_annotation, inspect.signature(contract).return_annotation
    ):
        found.append(f"it is annotated to return {problem}")
    if inspect.iscoroutinefunction(own) and not inspect.iscoroutinefunction(contract):
        found.append("it is async, expected a plain function")
    return found
