"""Imports a plugin and sees whether it is one, or sets it aside. Called by `Plugins` for each that is installed."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import pluggy
from packaging.specifiers import SpecifierSet

from slime_core import __version__, hookspecs
from slime_core.contracts.kinds import OBSERVERS
from slime_core.errors import PluginError, did_you_mean
from slime_core.plugins.discovery import PluginInfo, Switches
from slime_core.plugins.import_path import imported, resolve

Hooks = dict[str, pluggy.HookImpl]
"""What a plugin implements, by the name of the hook."""


def load(info: PluginInfo, switches: Switches) -> Hooks:
    """Import a plugin and return the hooks that it implements; none if it is switched off or broken, as its status then says."""
    if verdict := switches.verdict(info):
        info.status, info.reason = "disabled", verdict
        return {}
    try:
        if info.requires_core and not SpecifierSet(info.requires_core).contains(__version__, prereleases=True):
            raise PluginError(
                f"It needs slime-core {info.requires_core}, but slime-core {__version__} is installed; "
                f"install versions of {info.distribution} and slime-core that fit."
            )
        # Without a colon an entry point names a module, whatever its package has under that name.
        plugin = resolve(info.target) if ":" in info.target else imported(info.target)
        hooks = _checked_hooks(plugin)
    except (Exception, SystemExit) as error:  # whatever a plugin raises must not stop the others
        set_aside(info, error)
        return {}
    info.status, info.hooks, info.file = "loaded", sorted(hooks), getattr(plugin, "__file__", "") or ""
    return hooks


def set_aside(info: PluginInfo, error: BaseException) -> None:
    """Mark a plugin as broken: nothing of it can be selected any more, and messages say why."""
    info.status = "broken"
    info.reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    info.traceback = "".join(traceback.format_exception(error))


def _checked_hooks(plugin: Any) -> Hooks:
    """The hooks that a plugin implements, as pluggy finds them, after a comparison with the specifications."""
    manager = pluggy.PluginManager("slime")
    manager.register(plugin)
    known = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("slime_")}
    found: Hooks = {}
    for caller in manager.get_hookcallers(plugin) or []:
        implementations = caller.get_hookimpls()
        if len(implementations) > 1:
            names = ", ".join(implementation.function.__name__ for implementation in implementations)
            raise PluginError(f"It implements {caller.name} {len(implementations)} times ({names}); put them into one.")
        if caller.name in known:
            found[caller.name] = implementations[0]
            _check_parameters(implementations[0], known[caller.name])
            _check_markers(implementations[0], caller.name)
            if caller.name in OBSERVERS:
                _check_is_plain(implementations[0], caller.name)
        elif not implementations[0].optionalhook:
            raise PluginError(
                f"It implements the unknown hook {caller.name!r}.{did_you_mean(caller.name, known)} "
                "slime_core/hookspecs.py has them all."
            )
    marked = {implementation.function.__name__ for implementation in found.values()}
    if unmarked := sorted(
        name for name in known.keys() - found.keys() - marked if callable(getattr(plugin, name, None))
    ):
        raise PluginError(f"It defines {', '.join(unmarked)} without the decorator @slime_core.hookimpl; add it.")
    if not found:
        raise PluginError("It implements no hook of slime; see slime_core/hookspecs.py for what there is.")
    return found


def _check_parameters(implementation: pluggy.HookImpl, hook: Callable[..., Any]) -> None:
    told = inspect.signature(hook).parameters
    for name in implementation.argnames:
        if name not in told:
            raise PluginError(
                f"Its {hook.__name__} takes the parameter {name!r}, which nothing passes.{did_you_mean(name, told)} "
                f"It may take {', '.join(told) or 'none'}."
            )


def _check_is_plain(implementation: pluggy.HookImpl, hook: str) -> None:
    """An observer is called once, and nobody awaits it or goes through what it yields."""
    function = implementation.function
    forms = {
        "async": inspect.iscoroutinefunction(function),
        "a generator": inspect.isgeneratorfunction(function),
        "an async generator": inspect.isasyncgenfunction(function),
    }
    for form, is_one in forms.items():
        if is_one:
            raise PluginError(
                f"Its {hook} is {form}, and would never run; make it a plain function (def, without yield)."
            )


def require_done(returned: object) -> None:
    """Raise `PluginError` if an observer returned something that has not run yet, such as a decorated async function does."""
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise PluginError("It returned something to be awaited, and nobody does that; make it a plain function.")


def _check_markers(implementation: pluggy.HookImpl, hook: str) -> None:
    name = implementation.function.__name__
    if implementation.wrapper or implementation.hookwrapper:
        raise PluginError(
            f"It marks {name} as a wrapper, but slime calls every implementation of {hook} by itself, so there is nothing "
            "to wrap; leave wrapper and hookwrapper out."
        )
    if (implementation.tryfirst or implementation.trylast) and hook not in OBSERVERS:
        raise PluginError(
            f"It marks {name} with tryfirst or trylast, but components are chosen by name and never by order; leave it out."
        )
