"""`Subject`: one component under test, in a small run."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from slime_core.errors import ArgumentError, SlimeError
from slime_core.plugins import Plugins, Selected
from slime_core.testing.small_run import SmallRun

Result = TypeVar("Result")


class ContractError(SlimeError):
    """A component does not keep its contract. The message says in what, and what to do."""


class Subject(SmallRun, Generic[Result]):
    """A component in a small run. A call of it gives a `Result`, after the wait if it is async.

    Args:
        selected: the component, as a run selects it.
        plugins: what is installed.
        examples: inputs that it takes, if it cannot use the kit's own.
        options: command-line words that change the run's arguments.

    Attributes:
        kind, name, target: the component, `target` being the object itself.
        helpers: further components that it is given, whose options are read from the same arguments.
    """

    def __init__(
        self, selected: Selected[Any], plugins: Plugins, examples: Sequence[Any] = (), options: Sequence[str] = ()
    ) -> None:
        super().__init__(plugins, options)
        self.selected = selected
        self.kind, self.name = selected.kind, selected.name
        self.target: Any = selected.target
        self.examples = list(examples)
        self.helpers: list[Selected[Any]] = []

    def call(self, *args: Any, extras: dict[str, Any] | None = None, **kwargs: Any) -> Result:
        """Call the component as a run does: its result is checked, and awaited if it is a coroutine.

        Args:
            extras: parameters that it may ask for by naming them, such as `engine`.
        """
        result = self.selected.bind(**(extras or {}))(*args, **kwargs)
        made: Result = wait_for(result) if inspect.isawaitable(result) else result
        return made

    def expect(self, kept: bool, problem: str) -> None:
        """Raise `ContractError` with `problem` unless `kept`."""
        if not kept:
            raise ContractError(problem)

    @contextmanager
    def unchanged(self, what: str, value: Callable[[], object]) -> Iterator[None]:
        """Raise `ContractError` if `value()` is another one after the block; `what` names it in the message."""
        before = value()
        yield
        self.expect(
            value() == before, f"it changed {what}; work on a copy: whoever called it goes on using what it passed."
        )

    @contextmanager
    def lacking(self, unread: list[str]) -> Iterator[None]:
        """Explain what the block raises where it gives the component inputs in which `unread` are None, as the
        component does not declare that it reads them."""
        try:
            yield
        except (TypeError, AttributeError) as error:
            if not unread or "NoneType" not in str(error):
                raise
            raise ContractError(
                f"it raised {type(error).__name__}: {error}. It was given None for {', '.join(unread)}, as it does not "
                "say that it reads them; say so: @slime_core.contracts.loss.reads(lambda args: {…})."
            ) from error

    @contextmanager
    def takes(self, inputs: str) -> Iterator[None]:
        """Explain a refusal of what the block gives the component: its examples or, as there are none, the kit's own
        `inputs`."""
        self.resolved  # noqa: B018  # wrong arguments are no refusal
        try:
            yield
        except SlimeError as error:
            if (
                isinstance(error, (ContractError, ArgumentError))
                or self.examples
                or str(error).startswith("It returned")
            ):
                raise
            raise ContractError(
                f"it refused the kit's own {inputs}: {error} If it is right to, give inputs that it takes: "
                f"EXAMPLES = {{{self.name!r}: […]}} in {self.target.__module__}, or examples=[…] in check_component."
            ) from error


def wait_for(awaitable: Awaitable[Result]) -> Result:
    """Return the result of a coroutine, from plain code."""

    async def await_it() -> Result:
        return await awaitable

    return asyncio.run(await_it())


Check = Callable[[Subject[Any]], None]
"""Returns when the promise in the first line of its docstring is kept, and raises otherwise."""


def promise_of(check: Check) -> str:
    """Return the promise that a check is about: the first line of its docstring."""
    return (check.__doc__ or check.__name__).split("\n")[0]
