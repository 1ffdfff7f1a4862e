"""`Plugins`: the plugins of this process, and the components chosen from them.

One broken plugin is kept aside with its traceback and stops only a run that selects something of it. Components are
chosen by name, by alias or by import path, never by load order.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from slime_core.contracts.kinds import KINDS
from slime_core.errors import EXITS, PluginError, SlimeError, did_you_mean
from slime_core.lazy import Lazy
from slime_core.plugins.catalogue import IMPORT, imports, where_to_get
from slime_core.plugins.discovery import PluginInfo, Switches, discover
from slime_core.plugins.import_path import leads_nowhere, looked_in, names_a_module, raised_at, resolve
from slime_core.plugins.loading import Hooks, load, require_done, set_aside
from slime_core.plugins.selection import Selected, Timings
from slime_core.plugins.signatures import ability_problems, accepted_extras, near_misses, problems
from slime_core.plugins.slime_shapes import made_to_fit, what_to_change

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
    def reads_options(self) -> tuple[str, ...] | None:
        return _reads_options(self.value)

    @property
    def summary(self) -> str:
        if isinstance(self.value, Lazy):
            return self.value.summary
        return (getattr(self.value, "__doc__", "") or "").strip().split("\n")[0]


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
        self._loaded: list[tuple[PluginInfo, Hooks]] = []
        self._silenced: set[str] = set()
        self._timings = Timings()
        for info in self.infos:
            if hooks := load(info, self.switches):
                self._loaded.append((info, hooks))
        self._components = {kind: self._collect(kind) for kind in KINDS}

    def _check_switches(self) -> None:
        known = {name for info in self.infos for name in (info.name, info.distribution)}
        for name in self.switches.named():
            if canonicalize_name(name) not in map(canonicalize_name, known):
                raise PluginError(
                    f"There is no plugin {name!r} to switch on or off.{did_you_mean(name, known)} "
                    f"Installed: {', '.join(sorted(known))}."
                )

    # ------------------------------------------------------------------------------------------------- providers

    def provide(self, hook: str) -> Iterator[tuple[PluginInfo, Any]]:
        """Yield (plugin, what its implementation of the provider `hook` returned). A plugin that raises is marked broken."""
        for info, hooks in self._loaded:
            if hook not in hooks:
                continue
            try:
                yield info, hooks[hook].function()
            except (Exception, SystemExit) as error:
                set_aside(info, error)

    def _collect(self, kind: str) -> list[Provided]:
        found: list[Provided] = []
        for info, components in self.provide(KINDS[kind].hook):
            if not isinstance(components, Mapping) or not all(isinstance(name, str) for name in components):
                set_aside(
                    info,
                    PluginError(f"Its {KINDS[kind].hook} returned {components!r}; expected a dict of name: component."),
                )
                continue
            for name, value in components.items():
                found.append(Provided(kind, name, info, value))
        return found

    def all_components(self) -> list[Provided]:
        """All components of all kinds that can be selected."""
        return [provided for kind in KINDS for provided in self.components(kind).values()]

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
                f"Uninstall one of the two distributions, or switch one off with --disable-plugin {found[1].plugin.distribution}."
            )
        return found[0] if found else None

    def select(self, kind: str, name: str, option: str | None = None, installed_only: bool = False) -> Selected[Any]:
        """Import the component called `name` and check it against its contract.

        Args:
            option: the option that names it, for messages; by default the first one of the kind.
            installed_only: an import path is refused: the name comes from data, which chooses no code.

        Raises:
            PluginError: there is no such component, it cannot be imported, or its signature does not fit.
        """
        option = option or KINDS[kind].options[0]
        try:
            if installed_only and ("." in name or ":" in name) and self.find(kind, name) is None:
                raise PluginError(
                    f"A row names the {kind} {name!r}, an import path. Rows are data and name installed {kind}s only; if you trust "
                    f"this one, give it with {option}, or make a plugin of it (slime plugins new)."
                )
            return self._select(kind, name, option)
        except PluginError as error:
            error.option = option
            raise

    def _select(self, kind: str, name: str, option: str) -> Selected[Any]:
        provided, prefix = self.find(kind, name), ""
        if provided is None and not names_a_module(name):
            prefix = next((prefix for prefix in KINDS[kind].prefixes if name.startswith(prefix)), "")
            name = name.removeprefix(prefix)
            provided = self.find(kind, name)
        if provided is not None:
            origin, canonical, value = provided.plugin.label, provided.name, provided.value
            declared = provided.reads_options
        elif "." in name or ":" in name:
            origin, canonical, value, declared = "import path", name, Lazy(name), None
        else:
            raise PluginError(self._unknown(kind, name, option))
        check = value.check if isinstance(value, Lazy) else ""
        if isinstance(value, Lazy):
            try:
                value = resolve(value.target)
            except Exception as error:
                why = str(error)
                if not isinstance(error, SlimeError):
                    why = f"{type(error).__name__}: {error}".rstrip(".") + f"{raised_at(value.target, error)}."
                advice = "Repair or reinstall it."
                if provided is None and leads_nowhere(name, error):
                    advice = self._unknown(kind, name, option)
                    if not self.where_to_get(kind, name):
                        advice = self._of_import_names(name, error) or looked_in(error) + advice
                elif provided is None:
                    advice = self._of_import_names(name, error) or looked_in(error)
                raise PluginError(
                    f"The {kind} {name!r} of {origin}, chosen by {option}, cannot be imported: {why} {advice}".rstrip()
                ) from error
        if provided is None and (told := self._of_import_names(name, None)):
            raise PluginError(f"The {kind} {name!r}, chosen by {option}, was written for another program. {told}")
        value = made_to_fit(kind, value)
        if found := contract_problems(kind, value):
            raise PluginError(
                f"The {kind} {name!r} of {origin} does not fit {option}: {'; '.join(found)}.{what_to_change(kind, value)} "
                f"See {KINDS[kind].contract_path}."
            )
        return Selected(
            kind,
            canonical,
            value,
            origin,
            option,
            distribution=provided.plugin.distribution if provided else "",
            reads_options=_reads_options(value) if declared is None else declared,
            check_target=check,
            prefix=prefix,
            remarks=tuple(near_misses(KINDS[kind], value)),
            timings=self._timings,
        )

    def _of_import_names(self, path: str, error: Exception | None) -> str:
        """What to do about a module of somebody's own, of which `path` is a member, that imports a name which one of slime's own
        distributions provides, and which is not there (`error`), or is another's because that distribution could not take it; ""
        if there is no such name."""
        for name, distribution in imports().items():
            if path.replace(":", ".").partition(".")[0] == name:
                continue
            for info in self.broken():
                if info.distribution == distribution and name in sys.modules:
                    return f"It imports {name!r}, which {distribution} could not provide: {info.reason}."
            missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name
            if missing and (where := self.where_to_get(IMPORT, name)):
                return f"It imports {name!r}.{where}"
        return ""

    def _unknown(self, kind: str, name: str, option: str) -> str:
        known = sorted(self.components(kind))
        aside = ""
        for words, status in (("failed to load", "broken"), ("are off", "disabled")):
            if infos := [info for info in self.infos if info.status == status]:
                aside += f" Plugins that {words}: {'; '.join(f'{i.label}: {i.reason}' for i in infos)}."
        return (
            f"There is no {kind} named {name!r} for {option}."
            f"{self.where_to_get(kind, name) or did_you_mean(name, known)} "
            f"Installed: {', '.join(known) or 'none'}; or give an import path such as my_package.my_module.my_{kind}.{aside}"
        )

    def broken(self) -> list[PluginInfo]:
        """The plugins that failed to load, or whose options cannot be used (known once there is a `Namespace` of these plugins)."""
        return [info for info in self.infos if info.status == "broken"]

    def where_to_get(self, kind: str, name: str) -> str:
        """A sentence, with a space in front, on which of slime's own distributions to install for a component, command or
        option (kind "option") that is not here; "" where that would not help."""
        return where_to_get(kind, name, {str(canonicalize_name(info.distribution)) for info in self.infos})

    def take_timings(self) -> dict[str, float]:
        """Metrics `perf/hooks/KIND/seconds` and `…/calls` of everything that was called since the last time, observers
        under the names of their hooks. What a component calls counts for both; calls at the same time add up."""
        return self._timings.take()

    # ------------------------------------------------------------------------------------------------- observers

    def observers(self, hook: str) -> Iterator[tuple[PluginInfo, Callable[..., None]]]:
        """Yield (plugin, its implementation of the observer `hook`), in the order of `slime plugins`, those marked `tryfirst` before and
        those marked `trylast` after the others. The implementation may be called with everything that the hook's
        specification names; it is given what it asks for."""
        told = [(info, hooks[hook]) for info, hooks in self._loaded if hook in hooks]
        for info, own in sorted(told, key=lambda pair: pair[1].trylast - pair[1].tryfirst):
            if info.status == "loaded":
                implementation: Callable[..., object] = own.function

                def call(implementation: Callable[..., object] = implementation, **arguments: Any) -> None:
                    started = time.perf_counter()
                    try:
                        names = accepted_extras(implementation, tuple(arguments), whole=True)
                        require_done(implementation(**{name: arguments[name] for name in names}))
                    finally:
                        self._timings.add(hook, time.perf_counter() - started)

                yield info, call

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call every implementation of the observer `hook`, in the order of `slime plugins`."""
        for info, call in self.observers(hook):
            if info.label in self._silenced:
                continue
            try:
                call(**arguments)
            except (Exception, *EXITS) as error:
                self._silenced.add(info.label)
                logger.warning(
                    "The hook %s of the plugin %s raised %s: %s. Its observers are off for the rest of the run; repair it, "
                    "or switch it off with --disable-plugin %s.",
                    *(hook, info.label, type(error).__name__, error, info.distribution),
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
    """Everything in which `component` differs from the contract of its kind, as sentences; empty when it fits."""
    row = KINDS[kind]
    found = problems(component, row.contract, row.extras) + ability_problems(component, row.abilities)
    if found and row.alternative is not None and not problems(component, row.alternative, row.extras):
        return []
    return found


def _reads_options(component: Any) -> tuple[str, ...] | None:
    declared = getattr(component, "reads_options", None)
    return tuple(declared) if isinstance(declared, (list, tuple)) else None
