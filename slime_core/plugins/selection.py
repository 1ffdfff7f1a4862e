"""`Selected`: a component that a run uses. Every call of it, or of a method of it, goes through here: named in errors,
checked, timed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Generic, TypeVar

from slime_core.contracts.checking import Checking
from slime_core.contracts.kind import Check
from slime_core.contracts.kinds import KINDS
from slime_core.errors import EXITS, DataError, PluginError, SlimeError, exit_in_words
from slime_core.plugins import sample_changes
from slime_core.plugins.boundaries import settle
from slime_core.plugins.import_path import resolve
from slime_core.plugins.own_arguments import own_arguments
from slime_core.plugins.sample_changes import samples_in
from slime_core.plugins.signatures import accepted_extras

logger = logging.getLogger(__name__)

_MAKERS = ("generator", "rollout")
"""Kinds of components that hand over the samples they return, and go on with none of them."""


class Timings:
    """How often each kind of component and each observer was called, and for how many seconds. Any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()

    def add(self, name: str, seconds: float) -> None:
        """Count one call."""
        with self._lock:
            self._seconds[name] += seconds  # type: ignore[assignment]  # a Counter of floats
            self._calls[name] += 1

    def take(self) -> dict[str, float]:
        """Return what was added since the last time, as metrics, and start again from 0."""
        with self._lock:
            seconds, self._seconds = self._seconds, Counter()
            calls, self._calls = self._calls, Counter()
        return {f"perf/hooks/{name}/seconds": float(total) for name, total in sorted(seconds.items())} | {
            f"perf/hooks/{name}/calls": float(count) for name, count in sorted(calls.items())
        }


@dataclass(frozen=True)
class RaisedIn:
    """A component that an exception came through. Plain data, so that the exception can go to another process.

    Attributes:
        distribution: that the component comes from, "" for an import path.
        note: what was added to the exception about it.
    """

    kind: str
    distribution: str
    note: str


def raised_in(error: BaseException) -> tuple[RaisedIn, ...]:
    """The components that an exception came through, innermost first."""
    return getattr(error, "slime_raised_in", ())


Result = TypeVar("Result")


def _current_task() -> asyncio.Task[Any] | None:
    """The task that this code runs in; None outside of an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _ended_from_outside(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether an exception is how a coroutine is told to end: its task was cancelled, or it is closed from elsewhere."""
    if isinstance(error, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit) and (task is None or _current_task() is not task)


@dataclass(frozen=True)
class Selected(Generic[Result]):
    """A component that a run uses, whose result is a `Result` (of an async one: an awaitable of that). Calling it adds its origin to whatever it raises, checks what it returns, and times
    it; an async component counts from the call to its result, whatever it waits for. Where the component is a class, the
    methods of its contract are named and timed in the same way.

    Attributes:
        kind, name: what it was selected as; `name` is the component's own name, or the import path.
        target: the object.
        origin: "plugin (distribution version)", or "import path".
        option: the option that chose it.
        distribution: that it comes from, "" for an import path.
        reads_options: what it declares to read; None where it says nothing.
        check_target: "package.module:function" that checks a run before it starts, "" where the object itself may say so.
        prefix: one of the kind's, if it was selected by a name with that in front.
        remarks: what a person should know about it, one sentence each.
        timings: where its calls are counted.
        bound: extra keyword arguments that it asked for.
        further_check: what this use of it expects of a result besides its contract.
    """

    kind: str
    name: str
    target: Callable[..., Any]
    origin: str
    option: str
    distribution: str = ""
    reads_options: tuple[str, ...] | None = None
    check_target: str = ""
    prefix: str = ""
    remarks: tuple[str, ...] = ()
    timings: Timings = field(default_factory=Timings, repr=False, compare=False)
    bound: dict[str, Any] = field(default_factory=dict, hash=False)
    further_check: Check | None = field(default=None, repr=False, compare=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Call it and check what it returns; for an async function this is an awaitable of the same."""
        started, process, is_async = time.perf_counter(), os.getpid(), False
        if self.is_own:
            args = tuple(map(own_arguments, args))
        given = sample_changes.before(self.kind, args)
        try:
            result = self.target(*args, **self.bound, **kwargs)
            if not inspect.iscoroutine(result):
                made: Result = self._with_signed_methods(self._checked(result, args, given))
                return made
            is_async = inspect.iscoroutinefunction(KINDS[self.kind].contract)
            if is_async:
                awaited: Any = self._awaited(result, args, started, given)
                return awaited  # type: ignore[no-any-return]  # of an async component, `Result` is an awaitable
            result.close()
            raise PluginError("It returned a coroutine; it is async, expected a plain function.")
        except Exception as error:
            if (hint := KINDS[self.kind].hint) and (note := hint(error, self.target, args)):
                error.add_note(note)
            self._sign(error)
            raise
        except EXITS as error:
            if self.kind in ("command", "checkpoint_conversion"):  # which a person calls, and which end with a status
                raise
            raise self._exit(error) from error
        finally:
            settle(self.label, process)
            if not is_async:
                self.timings.add(self.kind, time.perf_counter() - started)

    def _with_signed_methods(self, result: Any) -> Any:
        """Have the methods of an instance's contract named and timed; one with `__slots__` stays as it is."""
        contract = KINDS[self.kind].contract
        if inspect.isclass(contract):
            for name, method in vars(contract).items():
                own = getattr(result, name, None)
                if inspect.isfunction(method) and not name.startswith("_") and callable(own):
                    with suppress(AttributeError):
                        setattr(result, name, self._signed(name, own))
        return result

    def _signed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched() -> AbstractContextManager[None]:
            return self._watched(f"{self.kind}.{name}", time.perf_counter(), f"{name} of ")

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with watched():
                return method(*args, **kwargs)

        @wraps(method)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with watched():
                return await method(*args, **kwargs)

        return call_async if inspect.iscoroutinefunction(method) else call

    async def _awaited(
        self, result: Awaitable[Any], args: tuple[Any, ...], started: float, given: list[sample_changes.Before]
    ) -> Any:
        with self._watched(self.kind, started):
            return self._checked(await result, args, given)

    @contextmanager
    def _watched(self, timed_as: str, started: float, place: str = "") -> Iterator[None]:
        """Sign what the block raises, time it, and return to the current folder of the run behind it.

        Args:
            started: when the call began, on the clock of `time.perf_counter`.
            place: what of the component runs, for errors ("log of "); "" for the component itself.
        """
        task, process = _current_task(), os.getpid()
        try:
            yield
        except Exception as error:
            self._sign(error, place)
            raise
        except EXITS as error:
            if _ended_from_outside(error, task):
                raise
            raise self._exit(error, place) from error
        finally:
            settle(self.label, process)
            self.timings.add(timed_as, time.perf_counter() - started)

    def _checked(self, result: Any, args: tuple[Any, ...], given: list[sample_changes.Before]) -> Any:
        if normalise := KINDS[self.kind].normalise:
            try:
                result = normalise(result)
            except DataError as error:
                raise PluginError(f"What it returned cannot be used: {error}.") from None
        for value in (result,) if self.kind == "buffer_pop" else (result, *args):
            for sample in samples_in(value):
                sample.make_plain(handed_over=value is result and self.kind in _MAKERS)
        sample_changes.check(given, self.kind, args)
        for check in filter(None, (KINDS[self.kind].check, self.further_check)):
            if problem := check(result, args):
                raise PluginError(f"It returned {problem.rstrip('.')}.")
        return result

    def _sign(self, error: Exception, place: str = "") -> None:
        """Add to an exception that it came through this component, unless that was said last."""
        told = raised_in(error)
        if told and (told[-1].kind, told[-1].distribution) == (self.kind, self.distribution):
            return
        note = f"raised in {place}the {self.label}, chosen by {self.option}"
        error.add_note(note)
        told = (*told, RaisedIn(self.kind, self.distribution, note))
        error.slime_raised_in = told  # type: ignore[attr-defined]

    def _exit(self, error: BaseException, place: str = "") -> PluginError:
        """The error for an exception that would have ended the program or its event loop without a word."""
        found = PluginError(
            f"It raised {exit_in_words(error)}, which would end the run in silence; return, or raise an error that says why."
        )
        self._sign(found, place)
        return found

    @property
    def is_own(self) -> bool:
        """Whether it is somebody's own function, chosen by its import path, and of no distribution."""
        return not self.distribution

    @property
    def label(self) -> str:
        """How messages name this component."""
        return f"{self.kind} {self.name!r} of {self.origin}"

    def check(self, checking: Checking) -> None:
        """Call what the component declares to check a run before it starts, if anything.

        Raises:
            PluginError: the check itself failed; else whatever `SlimeError` it raises.
        """
        try:
            check = resolve(self.check_target) if self.check_target else getattr(self.target, "slime_check", None)
        except Exception as error:
            raise PluginError(f"The check of the {self.label} is not there: {error}") from error
        try:
            if check is not None:
                check(checking.args, checking)
        except SlimeError:
            raise
        except Exception as error:
            raise PluginError(f"The check of the {self.label} raised {type(error).__name__}: {error}.") from error

    def bind(self, **extras: Any) -> Selected[Result]:
        """Give the component those of `extras` that its signature names."""
        wanted = accepted_extras(self.target, tuple(extras))
        return replace(self, bound={name: extras[name] for name in wanted})
