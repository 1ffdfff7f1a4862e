"""The `slime` command. Its subcommands are components like everything else: plugins add their own."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TextIO

from slime_core import __version__
from slime_core.cli.switches import HELP, read_switches
from slime_core.display import escape_on_stdout, tell_plainly, told
from slime_core.errors import ArgumentError, SlimeError, Terminated, did_you_mean
from slime_core.model_folders import look_once_through_models
from slime_core.output import path_in_the_way
from slime_core.plugins import Plugins
from slime_core.plugins.selection import raised_in
from slime_core.start_up import collect_no_more, collect_seldom
from slime_core.unread import STATUS, discard, is_unread

CORE = "slime-core"


def main(argv: list[str] | None = None) -> int:
    """Run `slime` and return its exit status: 0, 1 after an error in the run, 2 after a mistake on the command line, 130
    after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 where nobody reads its output any more.

    Args:
        argv: the words after `slime`; by default those of this process.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # now, where it can be told why this fails
    except BrokenPipeError:
        if not (unread := _unread_streams()):
            raise  # of something else, such as a connection
        for stream in unread:
            discard(stream)
        return STATUS
    finally:
        if argv is None:
            collect_no_more()


def _run(argv: list[str] | None) -> int:
    name = "--help"
    tell_plainly()
    if argv is None:
        collect_seldom()
        escape_on_stdout()
        look_once_through_models()
        _import_from_here()
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
            hint = plugins.where_to_get("command", name) or did_you_mean(name, plugins.components("command"))
            raise ArgumentError(f"there is no command {name!r}.{hint}\n{_usage(plugins)}")
        status: int = plugins.select("command", name)(words[1:], plugins)
        if argv is None:
            _leave_what_hangs(status)
        return status
    except SlimeError as error:
        print(told(f"slime {name}: {_with_notes(error)}"), file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread_streams():
            raise
        if path_in_the_way(error) is not None:
            print(told(f"slime {name}: {_with_notes(error)}"), file=sys.stderr)
            return 1
        if all(component.distribution == CORE for component in raised_in(error)):
            raise  # a defect of slime itself: the whole traceback
        print(told(f"slime {name}: {_with_notes(error)}\n{_traceback_outside_core(error)}"), file=sys.stderr)
        return 1
    except Terminated as error:
        print("slime: terminated", file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        print("slime: interrupted", file=sys.stderr)
        return 130


def _unread_streams() -> list[TextIO]:
    return [stream for stream in (sys.stdout, sys.stderr) if is_unread(stream)]


def _import_from_here() -> None:
    """Let import paths name modules in the current folder, unless Python was told not to. They come last: a file of a folder that
    somebody gives away may have the name of a module that is imported everywhere."""
    here = str(Path.cwd())
    asked = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if not sys.flags.safe_path and here not in asked:
        sys.path[:] = [*(path for path in sys.path if path not in ("", here)), here]


def _leave_what_hangs(status: int) -> None:
    """End the process now if the contract kit gave up on something: Python would wait for the threads that it made."""
    kit = sys.modules.get("slime_core.testing.time_limit")
    if kit is not None and kit.GIVEN_UP:
        sys.stdout.flush()
        os._exit(status)


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


def _with_notes(error: BaseException) -> str:
    """Return the message of an error, and below it the notes on what it came through but this command and the
    conversion that it names. A mistake on the command line is the command's to tell, whoever brings it."""
    cause, through = path_in_the_way(error) or error, raised_in(error)
    message = str(cause) if isinstance(cause, SlimeError) else f"{type(cause).__name__}: {cause}"
    mistyped = cause is not error or isinstance(error, ArgumentError)
    commands = {c.note for c in through if c.kind == "command" and (c.distribution == CORE or mistyped)}
    commands |= {c.note for c in through if c.kind == "checkpoint_conversion"}
    notes = [note for note in getattr(error, "__notes__", []) if note not in commands]
    return "\n".join([message, *(f"  {note}" for note in notes)])


def _traceback_outside_core(error: BaseException) -> str:
    """Return the part of the traceback that is in other people's code, which is what its author needs."""
    core = str(Path(__file__).parent.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(core)]
    return "".join(traceback.format_list(frames)).rstrip()
