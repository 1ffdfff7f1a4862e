"""`Plugins`: the plugins of this process, loaded one by one, and the components chosen from them.

One broken plugin is kept aside with its traceback and stops only a run that selects something of it. Components are
chosen by name, by alias or by import path, never by load order.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pluggy

from slime_core import __version__, hookspecs
from slime_core.errors import PluginError, SlimeError, did_you_mean
from slime_core.lazy import Lazy
from slime_core.plugins.discovery import PluginInfo, Switches, discover
from slime_core.plugins.kinds import KINDS
from slime_core.plugins.results import result_problem
from slime_core.plugins.signature import accepted_extras, problems

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provided:
    """A component as a plugin offers it, before it is imported."""

    kind: str
    name: str
    plugin: PluginInfo
    value: Any

    @property
    def aliases(self) -> tuple[str, ...]:
        return self.value.aliases if isinstance(self.value, Lazy) else ()

    @property
    def summary(self) -> str:
        if isinstance(self.value, Lazy):
            return self.value.summary
        return (getattr(self.value, "__doc__", "") or "").strip().split("\n")[0]


@dataclass(frozen=True)
class Selected:
    """A component that a run uses. Calling it adds its origin to whatever it raises.

    Attributes:
        kind, name: what it was selected as; `name` is the component's own name, or the import path.
        target: the object.
        origin: "plugin (distribution version)", or "import path".
        bound: extra keyword arguments that it asked for.
    """

    kind: str
    name: str
    target: Callable[..., Any]
    origin: str
    bound: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and check what it returns; for an async function this is an awaitable of the same."""
        with self._named():
            result = self.target(*args, **self.bound, **kwargs)
            if inspect.iscoroutine(result):
                if not inspect.iscoroutinefunction(KINDS[self.kind].contract):
                    result.close()
                    raise PluginError("It returned a coroutine; it is async, expected a plain function.")
                return self._awaited(result, args)
            return self._checked(result, args)

    async def _awaited(self, result: Awaitable[Any], args: tuple[Any, ...]) -> Any:
        with self._named():
            return self._checked(await result, args)

    def _checked(self, result: Any, args: tuple[Any, ...]) -> Any:
        if problem := result_problem(self.kind, result, args):
            raise PluginError(f"It returned {problem}.")
        return result

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds to every exception which component raised it."""
        try:
            yield
        except Exception as error:
            options = " or ".join(KINDS[self.kind].options)
            error.add_note(f"raised in the {self.label}, chosen by {options}")
            raise

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.kind} {self.name!r} of {self.origin}"

    def bind(self, **extras: Any) -> Selected:
        """Give the component those of `extras` that its signature names."""
        wanted = accepted_extras(self.target, tuple(extras))
        return Selected(self.kind, self.name, self.target, self.origin, {name: extras[name] for name in wanted})


class Plugins:
    """The plugins that are installed in this process.

    Args:
        infos: which plugins there are; all installed ones by default.
        switches: which of them may be loaded.

    Raises:
        PluginError: the switches name a plugin that is not installed.
    """

    def __init__(self, infos: list[PluginInfo] | None = None, switches: Switches | None = None) -> None:
        self.infos = discover() if infos is None else infos
        self.switches = switches or Switches()
        self._check_switches()
        self._loaded: list[tuple[PluginInfo, Any]] = []
        self._silenced: set[str] = set()
        for info in self.infos:
            self._load(info)
        self._components = {kind: self._collect(kind) for kind in KINDS}

    def _check_switches(self) -> None:
        known = {name for info in self.infos for name in (info.name, info.distribution)}
        for name in self.switches.named():
            if name not in known:
                raise PluginError(
                    f"There is no plugin {name!r} to switch on or off.{did_you_mean(name, known)} Installed: {', '.join(sorted(known))}."
                )

    def _load(self, info: PluginInfo) -> None:
        if verdict := self.switches.verdict(info):
            info.status, info.reason = "disabled", verdict
            return
        try:
            if info.requires_core and not _version_fits(info.requires_core):
                raise PluginError(
                    f"It needs slime-core {info.requires_core}, but slime-core {__version__} is installed; "
                    f"install versions of {info.distribution} and slime-core that fit."
                )
            plugin = _resolve_target(info.target)
            hooks = _checked_hooks(plugin)
        except (Exception, SystemExit) as error:  # whatever a plugin raises must not stop the others
            self.set_broken(info, error)
            return
        info.status = "loaded"
        info.file = getattr(plugin, "__file__", "") or ""
        info.hooks = hooks
        self._loaded.append((info, plugin))

    @staticmethod
    def set_broken(info: PluginInfo, error: BaseException) -> None:
        """Set a plugin aside: nothing of it can be selected any more, and messages say why."""
        info.status = "broken"
        info.reason = " ".join(f"{type(error).__name__}: {error}".split())
        info.traceback = "".join(traceback.format_exception(error))

    # ------------------------------------------------------------------------------------------------- providers

    def provide(self, hook: str) -> Iterator[tuple[PluginInfo, Any]]:
        """(plugin, what its implementation of the provider `hook` returned). One that raises is marked broken."""
        for info, plugin in self._loaded:
            implementation = getattr(plugin, hook, None)
            if implementation is None or hook not in info.hooks:
                continue
            try:
                yield info, implementation()
            except Exception as error:
                self.set_broken(info, error)

    def _collect(self, kind: str) -> list[Provided]:
        found: list[Provided] = []
        for info, components in self.provide(KINDS[kind].hook):
            if not isinstance(components, Mapping) or not all(isinstance(name, str) for name in components):
                self.set_broken(
                    info,
                    PluginError(f"Its {KINDS[kind].hook} returned {components!r}; expected a dict of name: component."),
                )
                continue
            for name, value in components.items():
                found.append(Provided(kind, name, info, value))
        return found

    def components(self, kind: str) -> dict[str, Provided]:
        """All components of a kind by name."""
        found: dict[str, Provided] = {}
        for provided in self._components[kind]:
            if provided.plugin.status == "loaded":
                found.setdefault(provided.name, provided)
        return found

    def find(self, kind: str, name: str) -> Provided | None:
        """The component that has this name or alias, not imported yet.

        Raises:
            PluginError: two plugins provide it.
        """
        provided = [p for p in self._components[kind] if p.plugin.status == "loaded"]
        found = [p for p in provided if p.name == name] or [p for p in provided if name in p.aliases]
        if len(found) > 1:
            raise PluginError(
                f"Two plugins provide a {kind} named {name!r}: {found[0].plugin.label} and {found[1].plugin.label}. "
                f"Uninstall one of the two distributions, or switch one off with --disable-plugin {found[1].plugin.name}."
            )
        return found[0] if found else None

    def select(self, kind: str, name: str) -> Selected:
        """Import the component called `name` and check it against its contract.

        Raises:
            PluginError: there is no such component, it cannot be imported, or its signature does not fit.
        """
        provided = self.find(kind, name)
        if provided is not None:
            origin, canonical, value = provided.plugin.label, provided.name, provided.value
        elif "." in name or ":" in name:
            origin, canonical, value = "import path", name, Lazy(name)
        else:
            raise PluginError(self._unknown(kind, name))
        option = KINDS[kind].options[0]
        if isinstance(value, Lazy):
            try:
                value = _resolve_target(value.target)
            except SlimeError:
                raise
            except Exception as error:
                raise PluginError(
                    f"The {kind} {name!r} of {origin} cannot be imported: {type(error).__name__}: {error}. "
                    + (f"{self._unknown(kind, name)}" if origin == "import path" else "Repair or reinstall it.")
                ) from error
        if found := contract_problems(kind, value):
            raise PluginError(
                f"The {kind} {name!r} of {origin} does not fit {option}: {'; '.join(found)}. "
                f"See slime_core.contracts.{KINDS[kind].contract.__name__}."
            )
        return Selected(kind, canonical, value, origin)

    def _unknown(self, kind: str, name: str) -> str:
        known = sorted(self.components(kind))
        aside = ""
        for words, status in (("failed to load", "broken"), ("are off", "disabled")):
            if infos := [info for info in self.infos if info.status == status]:
                aside += f" Plugins that {words}: {'; '.join(f'{i.label}: {i.reason}' for i in infos)}."
        return (
            f"There is no {kind} named {name!r} for {KINDS[kind].options[0]}.{did_you_mean(name, known)} "
            f"Installed: {', '.join(known) or 'none'}; or give an import path such as my_package.my_module.my_{kind}.{aside}"
        )

    # ------------------------------------------------------------------------------------------------- observers

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of the observer `hook`, in order of plugin name."""
        for info, plugin in self._loaded:
            if hook not in info.hooks or info.name in self._silenced:
                continue
            implementation = getattr(plugin, hook)
            wanted = accepted_extras(implementation, tuple(arguments))
            try:
                implementation(**{name: arguments[name] for name in wanted})
            except Exception as error:
                self._silenced.add(info.name)
                logger.warning(
                    "The hook %s of the plugin %s raised %s: %s. Its observers are off for the rest of the run; repair it, "
                    "or switch it off with --disable-plugin %s.",
                    *(hook, info.label, type(error).__name__, error, info.name),
                    exc_info=error,
                )

    # -------------------------------------------------------------------------------------------------- identity

    def fingerprint(self) -> dict[str, str]:
        """{distribution: version} of every loaded plugin, for checkpoints, trackers and worker handshakes."""
        return {info.distribution: info.version for info in self.infos if info.status == "loaded"}

    def require_same(self, theirs: Mapping[str, str], who: str) -> None:
        """Compare with the fingerprint of another process, which `who` names ("the driver").

        Raises:
            PluginError: names every distribution that differs.
        """
        if differences := fingerprint_differences(theirs, self.fingerprint()):
            raise PluginError(
                f"This worker's plugins differ from those of {who}: {'; '.join(differences)}. Install the same "
                "distributions in the same versions on every machine, and give every process the same plugin switches."
            )


def fingerprint_differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """One phrase for every distribution that is not the same in both."""
    return [
        f"{name} is {theirs.get(name, 'not loaded')} there and {ours.get(name, 'not loaded')} here"
        for name in sorted(set(theirs) | set(ours))
        if theirs.get(name) != ours.get(name)
    ]


def contract_problems(kind: str, component: Any) -> list[str]:
    """In what `component` differs from the contract of its kind; empty when it fits."""
    found = problems(component, KINDS[kind].contract, KINDS[kind].extras)
    alternative = KINDS[kind].alternative
    if found and alternative is not None and not problems(component, alternative, KINDS[kind].extras):
        return []
    return found


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


def _resolve_target(target: str) -> Any:
    """ "package.module:attribute", "package.module.attribute" or "package.module" → the object."""
    if ":" in target:
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        module, _, attribute = target.rpartition(".")
        if not module or (error.name and not f"{target}.".startswith(f"{error.name}.")):
            raise
        loaded = importlib.import_module(module)
        if not hasattr(loaded, attribute):
            raise PluginError(f"{module} has no {attribute!r}; check the name in {target!r}.") from None
        return getattr(loaded, attribute)


def _version_fits(specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(__version__, prereleases=True)
