"""Imports a plugin and sees whether it is one, or sets it aside. Called by `Plugins` for each that is installed."""

from __future__ import annotations

import traceback
from typing import Any

import pluggy
from packaging.specifiers import SpecifierSet

from slime_core import __version__, hookspecs
from slime_core.errors import PluginError
from slime_core.plugins.discovery import PluginInfo, Switches
from slime_core.plugins.import_path import resolve


def load(info: PluginInfo, switches: Switches) -> Any:
    """The plugin's module or object, if its status is "loaded" after the call."""
    if verdict := switches.verdict(info):
        info.status, info.reason = "disabled", verdict
        return None
    try:
        if info.requires_core and not SpecifierSet(info.requires_core).contains(__version__, prereleases=True):
            raise PluginError(
                f"It needs slime-core {info.requires_core}, but slime-core {__version__} is installed; "
                f"install versions of {info.distribution} and slime-core that fit."
            )
        plugin = resolve(info.target)
        info.hooks = _checked_hooks(plugin)
    except (Exception, SystemExit) as error:  # whatever a plugin raises must not stop the others
        set_aside(info, error)
        return None
    info.status, info.file = "loaded", getattr(plugin, "__file__", "") or ""
    return plugin


def set_aside(info: PluginInfo, error: BaseException) -> None:
    """Mark a plugin as broken: nothing of it can be selected any more, and messages say why."""
    info.status = "broken"
    info.reason = " ".join(f"{type(error).__name__}: {error}".split())
    info.traceback = "".join(traceback.format_exception(error))


def _checked_hooks(plugin: Any) -> list[str]:
    """Names of the hooks that a plugin implements, after pluggy has compared them with the specifications.

    Each plugin gets a manager of its own: one that pluggy refuses would leave traces in a shared one.
    """
    manager = pluggy.PluginManager("slime")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    hooks = sorted(caller.name for caller in manager.get_hookcallers(plugin) or [])
    known = {name for name in vars(hookspecs) if name.startswith("slime_")}
    if unmarked := sorted(name for name in known - set(hooks) if callable(getattr(plugin, name, None))):
        raise PluginError(f"It defines {', '.join(unmarked)} without the decorator @slime_core.hookimpl; add it.")
    if not hooks:
        raise PluginError("It implements no hook of slime; see slime_core/hookspecs.py for what there is.")
    return hooks
