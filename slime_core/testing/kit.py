"""`check_component` and `check_distribution`, and the report behind `slime plugins check` and `pytest --slime-check`."""

from __future__ import annotations

import inspect
import subprocess
import sys
import traceback
import unittest
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from packaging.utils import canonicalize_name

from slime_core.errors import PluginError, SlimeError, did_you_mean
from slime_core.plugins import PluginInfo, Plugins
from slime_core.plugins.kinds import KINDS
from slime_core.plugins.registry import contract_problems
from slime_core.testing.behaviour import CHECKS
from slime_core.testing.subject import Check, ContractError, NotChecked, Subject

HEAVY = {
    "jax",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "ray",
    "sglang",
    "tensorboard",
    "torch",
    "transformers",
    "vllm",
    "wandb",
}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        part: what was checked, such as "reward my_reward".
        check: the promise.
        status: "not checked" when a package is missing.
        why: what is wrong and what to do; which package is missing.
    """

    part: str
    check: str
    status: Literal["ok", "failed", "not checked"]
    why: str = ""


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
) -> None:
    """Check one component, without a package around it. For tests.

    Args:
        kind: one of `slime_core.plugins.kinds.KINDS`.
        component: the function or class.
        name: what messages and `EXAMPLES` call it; by default its own name.
        examples: inputs that it takes, if it cannot use the kit's own; see `slime_core.testing`.
        options: words of a command line that change the run's arguments, such as `["--n-samples-per-prompt", "1"]`.

    Raises:
        ContractError: it does not keep its contract; says in what, and what to do.
        unittest.SkipTest: nothing is wrong, but something could not be checked because a package is missing.
    """
    if kind not in KINDS:
        raise PluginError(f"There is no kind {kind!r}.{did_you_mean(kind, KINDS)} There are: {', '.join(KINDS)}.")
    name = name or getattr(component, "__name__", repr(component))
    raise_for(inspect_component(kind, name, component, Plugins(), examples, options))


def check_distribution(name: str, *, options: Sequence[str] = ()) -> None:
    """Check everything that an installed distribution provides. For tests.

    Args:
        name: what `pip` knows it as.
        options: words of a command line that change the run's arguments.

    Raises:
        PluginError: there is no such distribution, or it has no plugin.
        ContractError: something fails; the message lists all of it.
        unittest.SkipTest: nothing failed, but something could not be checked because a package is missing.
    """
    raise_for([finding for part in parts_of(name, Plugins(), options) for finding in part.inspect()])


def parts_of(name: str, plugins: Plugins, options: Sequence[str] = ()) -> list[Part]:
    """The plugins of an installed distribution and the components that they provide.

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
        parts.append(Part(f"plugin {info.name}", lambda info=info: _inspect_plugin(info, plugins)))  # type: ignore[misc]
        for kind in KINDS:
            for provided in plugins.components(kind).values():
                if provided.plugin is info:
                    parts.append(_component_part(kind, provided.name, plugins, options))
    return parts


def _component_part(kind: str, name: str, plugins: Plugins, options: Sequence[str]) -> Part:
    def inspect_it() -> list[Finding]:
        try:
            target = plugins.select(kind, name).target
        except SlimeError as error:
            return [Finding(f"{kind} {name}", FITS, "failed", str(error))]
        summary = plugins.components(kind)[name].summary
        found = inspect_component(kind, name, target, plugins, (), options)
        if not summary:
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
) -> list[Finding]:
    """All checks of one component, in the order of `slime_core.testing.behaviour`."""
    part, contract = f"{kind} {name}", f"slime_core.contracts.{KINDS[kind].contract.__name__}"
    if problems := contract_problems(kind, component):
        return [Finding(part, FITS, "failed", f"{'; '.join(problems)}. See {contract}.")]
    found = [Finding(part, FITS, "ok"), _documented(part, component)]
    known = getattr(sys.modules.get(getattr(component, "__module__", "")), "EXAMPLES", None)
    own = examples or (known.get(name, ()) if isinstance(known, Mapping) else ())
    subject = Subject(kind, name, component, plugins, own, options)
    try:
        if options:
            subject.args  # noqa: B018 - a wrong option is the caller's mistake, not a finding
        return found + [_run(check, subject, part, contract) for check in CHECKS[kind]]
    finally:
        subject.close()


def _run(check: Check, subject: Subject, part: str, contract: str) -> Finding:
    promise = (check.__doc__ or check.__name__).split("\n")[0]
    try:
        check(subject)
    except NotChecked as missing:
        return Finding(part, promise, "not checked", str(missing))
    except SlimeError as error:
        return Finding(part, promise, "failed", str(error))
    except Exception as error:  # whatever other people's code raises is a finding
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"it raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno}). See {contract}."
        return Finding(part, promise, "failed", why)
    return Finding(part, promise, "ok")


def _documented(part: str, component: Any) -> Finding:
    own = (component.__doc__ if inspect.isclass(component) else inspect.getdoc(component)) or ""
    why = "" if own.strip() else "it has no docstring; say in a sentence what it does and what it raises."
    return Finding(part, "is documented", "failed" if why else "ok", why)


def _inspect_plugin(info: PluginInfo, plugins: Plugins) -> list[Finding]:
    part = f"plugin {info.name}"
    if info.status != "loaded":
        why = f"{info.reason}\n{info.traceback}".strip() or f"it is {info.status}"
        return [Finding(part, "loads and implements known hooks", "failed", why)]
    found = [Finding(part, "loads and implements known hooks", "ok"), _light(part, info)]
    groups = {i.label: made for i, made in plugins.provide("slime_argument_groups")}.get(info.label, [])
    for group in groups:
        lacking = [name for name, field in group.model_fields.items() if not field.description]
        lacking += [] if "__doc__" in vars(group) and group.__doc__ else [group.__name__]
        why = f"there is no help text for {', '.join(lacking)}; give every option and its group one." if lacking else ""
        found.append(Finding(part, f"documents the options of {group.__name__}", "failed" if lacking else "ok", why))
    return found


def _light(part: str, info: PluginInfo) -> Finding:
    """Import the plugin's module in a fresh process and see what comes along."""
    module = info.target.split(":")[0]
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*({HEAVY!r} & set(sys.modules)))"
    environment = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    promise = "imports nothing heavy"
    if environment.returncode:
        return Finding(part, promise, "failed", f"it does not import alone:\n{environment.stderr.strip()}")
    if heavy := environment.stdout.split():
        why = (
            f"{module} imports {', '.join(sorted(heavy))}, so that every `slime` command waits for it; name components "
            'with slime_core.Lazy("module:attribute"), and import option groups inside slime_argument_groups.'
        )
        return Finding(part, promise, "failed", why)
    return Finding(part, promise, "ok")


def table(findings: Sequence[Finding]) -> str:
    """The findings as text, reasons below their lines."""
    widths = [max(len(text) for text in column) for column in zip(*((f.part, f.check) for f in findings), strict=True)]
    lines = []
    for finding in findings:
        lines.append(f"{finding.part:<{widths[0]}}  {finding.check:<{widths[1]}}  {finding.status}")
        lines += [f"    {line}" for line in finding.why.splitlines()]
    return "\n".join(lines)


def raise_for(findings: list[Finding]) -> None:
    """Raise what `check_component` raises when not all is well."""
    if failed := [finding for finding in findings if finding.status == "failed"]:
        raise ContractError("\n".join(f"The {f.part} should keep this promise: {f.check}. But {f.why}" for f in failed))
    if missing := sorted({finding.why for finding in findings if finding.status == "not checked"}):
        raise unittest.SkipTest(f"not all could be checked: {'; '.join(missing)}")
