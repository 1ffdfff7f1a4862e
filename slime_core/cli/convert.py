"""`slime convert`: converts checkpoints. The conversions are components, like the commands themselves."""

from __future__ import annotations

from slime_core.errors import ArgumentError, did_you_mean
from slime_core.plugins import Plugins

KIND = "checkpoint_conversion"


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime convert CONVERSION …`.

    Raises:
        ArgumentError: no conversion is named, or there is none of this name.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(_usage(plugins))
        return 0
    if not name or name.startswith("-"):
        raise ArgumentError(f"Which conversion? It comes first.\n{_usage(plugins)}")
    if plugins.find(KIND, name) is None and "." not in name:
        hint = plugins.where_to_get(KIND, name) or did_you_mean(name, plugins.components(KIND))
        raise ArgumentError(f"There is no conversion {name!r}.{hint}\n{_usage(plugins)}")
    status: int = plugins.select(KIND, name)(argv[1:], plugins)
    return status


def _usage(plugins: Plugins) -> str:
    found = plugins.components(KIND).values()
    return "\n".join(
        [
            "usage: slime convert CONVERSION …",
            "",
            "Converts a checkpoint from one format to another, tensor by tensor.",
            "",
            "conversions:",
            *([f"  {c.name:<18} {c.summary}" for c in found] or ["  none is installed"]),
            "",
            "Each one explains itself with --help.",
        ]
    )
