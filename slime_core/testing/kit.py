"""`check_component`, `check_distribution`, and the findings behind `slime plugins check` and `pytest --slime-check`."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from packaging.utils import canonicalize_name

from slime_core.contracts.kinds import KINDS
from slime_core.errors import PluginError, SlimeError, did_you_mean
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.registry import contract_problems
from slime_core.testing.behaviour import CHECKS
from slime_core.testing.declarations import declares_what_exists, documented, named_as_called, reads_what_it_declares
from slime_core.testing.findings import Finding, run_all
from slime_core.testing.plugin import inspect_plugin
from slime_core.testing.subject import Check, ContractError, Subject, promise_of
from slime_core.testing.time_limit import TIME_LIMIT, in_time


@dataclass(frozen=True)
class Part:
    """A plugin or a component of a distribution, not inspected yet.

    Attributes:
        title: "plugin my-package" or "reward my_reward".
        inspect: runs its checks.
    """

    title: str
    inspect: Callable[[], list[Finding]]


def check_component(
    kind: str,
    component: Callable[..., Any],
    *,
    name: str = "",
    examples: Sequence[Any] = (),
    options: Sequence[str] = (),
    time_limit: float = TIME_LIMIT,
) -> None:
    """Check one component, without a package around it, in a test.

    Args:
        kind: one of `slime_core.contracts.kinds.KINDS`.
        component: the function or class.
        name: what messages and `EXAMPLES` call it; by default its own name.
        examples: inputs that it takes, if it cannot use the kit's own; see `slime_core.testing`.
        options: words of a command line that change the run's arguments, such as `["--n-samples-per-prompt", "1"]`.
        time_limit: seconds for each check; one that takes longer fails, and those after it are left out.

    Raises:
        ContractError: it does not keep its contract; the message says in what, and what to do.
        unittest.SkipTest: nothing is wrong, but something could not be checked because a package is missing.
    """
    if kind not in KINDS:
        raise PluginError(f"There is no kind {kind!r}.{did_you_mean(kind, KINDS)} There are: {', '.join(KINDS)}.")
    name = name or getattr(component, "__name__", repr(component))
    raise_for(inspect_component(kind, name, component, Plugins(), examples, options, time_limit))


def check_distribution(name: str, *, options: Sequence[str] = (), time_limit: float = TIME_LIMIT) -> None:
    """Check everything that an installed distribution provides, in a test.

    Args:
        name: what `pip` knows it as.
        options: words of a command line that change the run's arguments.
        time_limit: seconds for each check.

    Raises:
        PluginError: there is no such distribution, or it has no plugin.
        ContractError: something fails; the message lists all of it.
        unittest.SkipTest: nothing failed, but something could not be checked because a package is missing.
    """
    raise_for([finding for part in parts_of(name, Plugins(), options, time_limit) for finding in part.inspect()])


def parts_of(name: str, plugins: Plugins, options: Sequence[str] = (), time_limit: float = TIME_LIMIT) -> list[Part]:
    """Return the plugins of an installed distribution and the components that they provide, not inspected yet.

    Raises:
        PluginError: there is no such distribution, or it has no plugin.
    """
    infos = [info for info in plugins.infos if canonicalize_name(info.distribution) == canonicalize_name(name)]
    if not infos:
        known = sorted({info.distribution for info in plugins.infos})
        raise PluginError(
            f"No installed distribution {name!r} has a plugin for slime.{did_you_mean(name, known)} Is it installed in "
            "this environment, and does its pyproject.toml have [project.entry-points.slime]? Installed: "
            f"{', '.join(known)}."
        )
    parts = []
    for info in infos:
        parts.append(Part(f"plugin {info.name}", partial(inspect_plugin, info, plugins, options, time_limit)))
        for kind in KINDS:
            for provided in plugins.components(kind).values():
                if provided.plugin is info:
                    parts.append(_component_part(kind, provided.name, plugins, options, time_limit))
    return parts


def _component_part(kind: str, name: str, plugins: Plugins, options: Sequence[str], time_limit: float) -> Part:
    def inspect_it() -> list[Finding]:
        try:
            selected = in_time(lambda: plugins.select(kind, name), time_limit)
        except SlimeError as error:
            return [Finding(f"{kind} {name}", FITS, "failed", str(error))]
        found = _inspect(selected, plugins, (), options, time_limit)
        if not plugins.components(kind)[name].summary:
            why = 'it has no line in the list of components; give its Lazy one: Lazy("…", summary="what it does")'
            found.insert(0, Finding(f"{kind} {name}", "has a summary", "failed", why))
        return found

    return Part(f"{kind} {name}", inspect_it)


FITS = "imports and fits its contract"


def inspect_component(
    kind: str,
    name: str,
    component: Callable[..., Any],
    plugins: Plugins,
    examples: Sequence[Any] = (),
    options: Sequence[str] = (),
    time_limit: float = TIME_LIMIT,
) -> list[Finding]:
    """Run all checks of a component that need not be installed, and return what they found; see `check_component`."""
    if problems := contract_problems(kind, component):
        why = f"{'; '.join(problems)}. See {KINDS[kind].contract_path}."
        return [Finding(f"{kind} {name}", FITS, "failed", why)]
    declared = getattr(component, "reads_options", None)
    selected: Selected[Any] = Selected(
        kind,
        name,
        component,
        "the package under test",
        "the kit",
        reads_options=tuple(declared) if isinstance(declared, (list, tuple)) else None,
    )
    return _inspect(selected, plugins, examples, options, time_limit)


def _inspect(
    selected: Selected[Any], plugins: Plugins, examples: Sequence[Any], options: Sequence[str], time_limit: float
) -> list[Finding]:
    """Return the findings on a component whose signature fits: on what it says of itself, then on what it does."""
    kind, component = selected.kind, selected.target
    part = f"{kind} {selected.name}"
    known = getattr(sys.modules.get(getattr(component, "__module__", "")), "EXAMPLES", None)
    own = examples or (known.get(selected.name, ()) if isinstance(known, Mapping) else ())
    subject: Subject[Any] = Subject(selected, plugins, own, options)
    try:
        if options:
            subject.resolved  # noqa: B018  # a wrong option is the caller's mistake, not a finding
        found = [Finding(part, FITS, "ok"), documented(part, component), named_as_called(part, subject)]
        checks = [(promise_of(check), partial(_run_check, check, subject)) for check in CHECKS.get(kind, ())]
        run = run_all(part, checks, time_limit, f" See {KINDS[kind].contract_path}.")
        if selected.reads_options is None:
            return found + run
        found.append(declares_what_exists(part, subject))
        ran_through = any(finding.status == "ok" for finding in run) and not run[-1].hangs
        return found + run + ([reads_what_it_declares(part, subject)] if ran_through else [])
    finally:
        subject.close()


def _run_check(check: Check, subject: Subject[Any]) -> None:
    try:
        check(subject)
    finally:
        subject.close_opened()


def raise_for(findings: list[Finding]) -> None:
    """Raise `ContractError` if a check failed, and `unittest.SkipTest` if none did but one could not be made."""
    if failed := [finding for finding in findings if finding.status == "failed"]:
        raise ContractError("\n".join(f"The {f.part} should keep this promise: {f.check}. But {f.why}" for f in failed))
    if missing := sorted({finding.why for finding in findings if finding.status == "not checked"}):
        raise unittest.SkipTest(f"not all could be checked: {'; '.join(missing)}")
