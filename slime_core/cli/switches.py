"""The options that every command understands, read before any plugin is imported: which plugins may be loaded."""

from __future__ import annotations

from collections.abc import Mapping

from slime_core.errors import ArgumentError
from slime_core.plugins.discovery import Switches

HELP = """plugin options, before or after the command:
  --disable-plugin NAME   do not load this plugin (its name or its distribution's); repeatable
  --only-plugin NAME      load none but the core and these; repeatable
  --no-third-party        load only slime's own distributions
  SLIME_PLUGINS=a,-b      environment: load only a; do not load b"""


def read_switches(argv: list[str], env: Mapping[str, str]) -> tuple[Switches, list[str]]:
    """Return the switches that a command line and the environment hold, and the command line without them.

    Raises:
        ArgumentError: a switch lacks the name of a plugin.
    """
    listed = [name.strip() for name in env.get("SLIME_PLUGINS", "").split(",") if name.strip()]
    only = [name for name in listed if not name.startswith("-")]
    disabled = [name.removeprefix("-") for name in listed if name.startswith("-")]
    third_party, rest, words = True, [], iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--no-third-party" and not value:
            third_party = False
        elif flag in ("--disable-plugin", "--only-plugin"):
            value = value or next(words, "")
            if not value or value.startswith("--"):
                raise ArgumentError(f"{flag} needs the name of a plugin; `slime plugins` lists them.")
            (disabled if flag == "--disable-plugin" else only).append(value)
        else:
            rest.append(word)
    return Switches(tuple(only) or None, tuple(disabled), third_party), rest
