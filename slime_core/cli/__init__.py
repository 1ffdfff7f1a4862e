"""The `slime` command. Its subcommands are components like everything else: plugins add their own."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from slime_core import __version__
from slime_core.cli.switches import HELP, read_switches
from slime_core.errors import ArgumentError, SlimeError, did_you_mean
from slime_core.plugins import Plugins


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 after an error in the run, 2 after a mistake on the command line."""
    name = "--help"
    try:
        switches, words = read_switches(sys.argv[1:] if argv is None else argv, os.environ)
        name = words[0] if words else name
        if name == "--version":
            print(f"slime {__version__}")
            return 0
        plugins = Plugins(switches=switches)
        if name in ("-h", "--help"):
            print(_usage(plugins))
            return 0
        if plugins.find("command", name) is None:
            hint = did_you_mean(name, plugins.components("command"))
            raise ArgumentError(f"there is no command {name!r}.{hint}\n{_usage(plugins)}")
        return plugins.select("command", name)(words[1:], plugins)
    except SlimeError as error:
        print(f"slime {name}: {_with_notes(error)}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except Exception as error:
        if not any(note.startswith("raised in the ") and "slime-core" not in note for note in _notes(error)):
            raise  # a defect of slime itself: the whole traceback
        print(f"slime {name}: {_with_notes(error)}\n{_traceback_outside_core(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("slime: interrupted", file=sys.stderr)
        return 130


def _usage(plugins: Plugins) -> str:
    commands = plugins.components("command").values()
    return "\n".join(
        [
            "usage: slime COMMAND …",
            "",
            "Post-trains large language models, SFT and RL, in one loop.",
            "",
            "commands:",
            *(f"  {command.name:<12} {command.summary}" for command in commands),
            "",
            HELP,
            "",
            "Each command explains itself with --help.",
        ]
    )


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", [])
    return [note for note in notes if not note.startswith("raised in the command ")]


def _with_notes(error: BaseException) -> str:
    message = str(error) if isinstance(error, SlimeError) else f"{type(error).__name__}: {error}"
    return "\n".join([message, *(f"  {note}" for note in _notes(error))])


def _traceback_outside_core(error: BaseException) -> str:
    """The frames of other people's code: what its author needs, without how slime got there."""
    core = str(Path(__file__).parent.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(core)]
    return "".join(traceback.format_list(frames)).rstrip()
