"""What is installed: plugins as their distributions declare them, read without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from slime_core.plugins.catalogue import FIRST_PARTY

ENTRY_POINT_GROUP = "slime"


@dataclass(frozen=True)
class Switches:
    """Which plugins may be loaded. Plugins are named by entry point or by distribution.

    Attributes:
        only: load none but these (and the core), if given.
        disabled: do not load these.
        third_party: False loads only this project's own distributions.
    """

    only: tuple[str, ...] | None = None
    disabled: tuple[str, ...] = ()
    third_party: bool = True

    def verdict(self, info: PluginInfo) -> str:
        """Why a plugin may not be loaded; "" if it may."""
        if _mentioned(info, self.disabled):
            return "switched off by --disable-plugin or SLIME_PLUGINS"
        if not self.third_party and canonicalize_name(info.distribution) not in FIRST_PARTY:
            return "third-party plugins are switched off by --no-third-party"
        if (
            self.only is not None
            and canonicalize_name(info.distribution) != "slime-core"
            and not _mentioned(info, self.only)
        ):
            return "not in the list of --only-plugin or SLIME_PLUGINS"
        return ""

    def named(self) -> tuple[str, ...]:
        """All plugins that the switches mention."""
        return (*(self.only or ()), *self.disabled)


@dataclass
class PluginInfo:
    """One entry point of the group `slime`.

    Attributes:
        name: the entry point's name.
        distribution, version: what `pip` knows it as.
        target: "package.module" that the entry point names.
        requires_core: the distribution's own requirement on slime-core, e.g. ">=0.1".
        status: "found" until it is loaded, then "loaded", "broken" or "disabled".
        reason: why it is broken or disabled: one line, without a full stop.
        traceback: the whole story of a broken one.
        hooks: names of the hooks it implements, known once it is loaded.
        file: where its module lies, known once it is loaded.
    """

    name: str
    distribution: str
    version: str
    target: str
    requires_core: str = ""
    status: Literal["found", "loaded", "broken", "disabled"] = "found"
    reason: str = ""
    traceback: str = ""
    hooks: list[str] = field(default_factory=list)
    file: str = ""

    @property
    def label(self) -> str:
        """How messages name it: "losses (slime-losses 0.1.0)"."""
        return f"{self.name} ({self.distribution} {self.version})"

    @property
    def left_out(self) -> str:
        """What a run says of it if it is broken: nobody chooses observers, so nobody would miss them."""
        return f"The plugin {self.label} failed to load and is left out: {self.reason}. `slime plugins --why {self.name}` tells all."


def discover() -> list[PluginInfo]:
    """All installed plugins: slime's own first, so that no other one can take a name away from them, then by
    distribution and name."""
    found: dict[tuple[str, str], PluginInfo] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        told = entry.dist.metadata if entry.dist else None  # is read and parsed anew by each look
        info = PluginInfo(
            name=entry.name,
            distribution=told["Name"] if told else "unknown",
            version=told["Version"] if told else "0",
            target=entry.value,
            requires_core=_core_requirement(told.get_all("Requires-Dist") or [] if told else []),
        )
        found.setdefault((canonicalize_name(info.distribution), info.name), info)
    return [found[key] for key in sorted(found, key=lambda key: (key[0] not in FIRST_PARTY, key))]


def _mentioned(info: PluginInfo, names: tuple[str, ...]) -> bool:
    """Is the plugin, or its distribution, among `names`? Spelled as pip allows: dashes and underscores are the same."""
    return not {canonicalize_name(n) for n in names}.isdisjoint(
        (canonicalize_name(info.name), canonicalize_name(info.distribution))
    )


def _core_requirement(requires: list[str]) -> str:
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == "slime-core":
            return str(requirement.specifier)
    return ""
