"""The exceptions that people see.

Every user mistake ends in a `SlimeError` whose message says what was given, what was expected and what to do.
The command line prints the message alone; anything else that is raised is a defect and keeps its traceback.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

EXITS = (SystemExit, GeneratorExit, asyncio.CancelledError)
"""Exceptions that no `except Exception` sees, and that end a program, a generator or a task. Of other people's code they are errors."""


def exit_in_words(error: BaseException) -> str:
    """One of `EXITS` as it would be written, such as "SystemExit(0)"."""
    return f"{type(error).__name__}{f'({error})' if str(error) else ''}"


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP ended the run, as Ctrl-C does.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class SlimeError(Exception):
    """Base of all errors that are meant for the person who started the run.

    Attributes:
        option: the option whose value alone is wrong, such as "--rm-type"; "" where there is no such one.
    """

    option: str = ""


class ArgumentError(SlimeError):
    """An option is unknown, mistyped, out of range, or contradicts another one."""


class NotInstalled(ArgumentError):
    """What options speak of is not installed on this machine, so that they cannot be looked at here."""


class DataError(SlimeError):
    """A data file or one of its rows cannot be used. The message names file and row."""


class SampleError(SlimeError):
    """A sample that a rollout returned breaks an invariant of `slime_core.sample`."""


class PluginError(SlimeError):
    """A plugin, hook or component cannot be loaded, found or called. The message names plugin and distribution."""


class CheckpointError(SlimeError):
    """A checkpoint cannot be written, read, or belongs to another run."""


class OutputError(SlimeError):
    """What a run writes besides checkpoints cannot be written: metrics, configuration, answers, exports. The message names the file."""


class TrainingError(SlimeError):
    """Training produced something that must not go on: NaN or Inf in loss or gradients."""


class ParityError(SlimeError):
    """A train backend computes something else than transformers does. The message names the tensor."""


class ClusterError(SlimeError):
    """A Ray cluster cannot be reached, or is too small."""


class WorkerDied(ClusterError):
    """The process of a worker is gone. The message names the worker, its pid and its machine."""


def together(errors: Sequence[SlimeError]) -> SlimeError:
    """Return one error that says what all of these say; a single one as it is. If one of several is an `ArgumentError`, so is
    what is returned."""
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = (
        kinds.pop()
        if len(kinds) == 1
        else ArgumentError
        if any(issubclass(k, ArgumentError) for k in kinds)
        else SlimeError
    )
    lines = [line for error in errors for line in (f"- {error}", *getattr(error, "__notes__", ()))]
    return kind(f"{len(errors)} things are wrong.\n" + "\n".join(lines))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name nearest to `name`, or nothing when none is near."""
    bare = {other.lstrip("-"): other for other in known}  # two flags are not alike for their dashes
    near = difflib.get_close_matches(name.lstrip("-"), bare, 1, 0.6)
    return f" Did you mean {bare[near[0]]!r}?" if near else ""


@contextmanager
def first_error_only() -> Iterator[None]:
    """Around an `asyncio.TaskGroup`: raise the first exception of a task in place of a group of exceptions."""
    try:
        yield
    except BaseExceptionGroup as errors:
        error = first_error(errors)
    else:
        return
    raise error


def first_error(error: BaseException) -> BaseException:
    """Return the exception that was raised first, of one that may be a group, also of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
