"""Where to begin with a component of a kind that has no template: its contract, its hook, and an installed example."""

from __future__ import annotations

from slime_core.contracts.kinds import KINDS
from slime_core.lazy import Lazy
from slime_core.plugins import Plugins
from slime_core.plugins.registry import Provided


def where_to_begin(kind: str, plugins: Plugins) -> str:
    """Return what somebody reads who writes a component of `kind`, which is one of `KINDS`.

    Args:
        plugins: what is installed; its components of this kind are examples.
    """
    row = KINDS[kind]
    installed = list(plugins.components(kind).values())
    example = f"An installed example is {_shown(installed[0])}. " if installed else "No component of it is installed. "
    return (
        f"There is no template for the kind {kind!r}. Its contract is {row.contract_path}; a plugin provides such a "
        f"component by the hook {row.hook}, and {row.options[0]} chooses it. {example}Begin with a package of another "
        "kind and put your component in the place of that one; `slime plugins check` compares it with its contract."
    )


def _shown(provided: Provided) -> str:
    """Return a component's name, where its code is, and which distribution brings it."""
    value = provided.value
    place = value.target if isinstance(value, Lazy) else f"{value.__module__}:{getattr(value, '__qualname__', '?')}"
    return f"{provided.name!r}, {place} of {provided.plugin.distribution}"
