"""Calling other people's functions: time limits, retries, and what happens when one fails for good.

Kinds of components whose failures a run can survive have a `FailurePolicy`; `--failure-policy` changes it for a run. A `Caller` applies it, checks
what comes back, counts and times, for plain and async functions alike. What a caller gives up on is `DROPPED`, and the
caller of the caller decides what is lost with it (a reward: its group).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tenacity

from slime_core.contracts.kind import FailurePolicy
from slime_core.contracts.kinds import KINDS
from slime_core.errors import ArgumentError, PluginError, SlimeError, did_you_mean
from slime_core.plugins.selection import Selected, raised_in

logger = logging.getLogger(__name__)


class Dropped:
    """The type of `DROPPED`."""

    def __repr__(self) -> str:
        return "DROPPED"


DROPPED = Dropped()


def policies(settings: Sequence[str]) -> dict[str, FailurePolicy]:
    """The default policies changed by `--failure-policy` settings such as "reward:timeout=30,retries=0".

    Raises:
        ArgumentError: a setting names no kind, no field, or a value that does not fit.
    """
    found = {name: kind.policy for name, kind in KINDS.items() if kind.policy is not None}
    for setting in settings:
        kind, _, rest = setting.partition(":")
        if kind in KINDS and kind not in found:
            raise ArgumentError(
                f"--failure-policy {setting!r}: when a {kind} fails, the run ends; there is no other policy for it. There "
                f"is one for {', '.join(found)}."
            )
        if kind not in found or not rest:
            raise ArgumentError(
                f"--failure-policy {setting!r}: expected KIND:field=value,… with one of the kinds "
                f"{', '.join(found)}.{did_you_mean(kind, found)}"
            )
        changes = dict(_setting(setting, item) for item in rest.split(","))
        found[kind] = replace(found[kind], **changes)
    return found


def _setting(setting: str, item: str) -> tuple[str, Any]:
    name, _, text = item.strip().partition("=")
    readers: dict[str, Callable[[str], Any]] = {
        "timeout": lambda t: None if t == "none" else _positive(float(t)),
        "retries": lambda t: _positive(int(t), zero=True),
        "backoff": lambda t: _positive(float(t), zero=True),
        "on_failure": lambda t: {"raise": "raise", "drop": "drop"}[t],
        "abort_after": lambda t: None if t == "none" else _positive(int(t)),
    }
    if name not in readers:
        raise ArgumentError(
            f"--failure-policy {setting!r}: there is no field {name!r}; there are {', '.join(readers)}."
            f"{did_you_mean(name, readers)}"
        )
    try:
        return name, readers[name](text)
    except (ValueError, KeyError):
        raise ArgumentError(
            f"--failure-policy {setting!r}: {name} cannot be {text!r}; timeout and backoff are seconds, retries and "
            "abort_after counts, on_failure is raise or drop, and timeout and abort_after may be none."
        ) from None


def _positive(number: Any, zero: bool = False) -> Any:
    if not (number > 0 or (zero and number == 0)):
        raise ValueError
    return number


@dataclass
class Caller:
    """Calls one selected component under a policy.

    Attributes:
        calls, failures, timeouts, dropped: counts over the run; a failure is a failed attempt. How long the attempts
            took, the component itself counts: see `Plugins.take_timings`.
    """

    selected: Selected[Any]
    policy: FailurePolicy
    calls: int = 0
    failures: int = 0
    timeouts: int = 0
    dropped: int = 0
    _in_a_row: int = field(default=0, repr=False)

    def call(self, *args: Any, item: str = "", **kwargs: Any) -> Any:
        """Call a plain function. `item` says in messages what it was called for ("sample 3")."""

        def attempt() -> Any:
            with self._counted():
                if self.policy.timeout is None:
                    return self.selected(*args, **kwargs)
                return _in_thread(self.selected, args, kwargs).result(self.policy.timeout)

        self.calls += 1
        return tenacity.Retrying(**self._retrying(item))(attempt)

    async def call_async(self, *args: Any, item: str = "", **kwargs: Any) -> Any:
        """Call a plain or async function from a coroutine. A plain one runs on a thread of its own."""

        async def attempt() -> Any:
            with self._counted():
                if inspect.iscoroutinefunction(self.selected.target):
                    awaitable: Any = self.selected(*args, **kwargs)
                else:
                    awaitable = asyncio.wrap_future(_in_thread(self.selected, args, kwargs))
                return await asyncio.wait_for(awaitable, self.policy.timeout)

        self.calls += 1
        return await tenacity.AsyncRetrying(**self._retrying(item))(attempt)

    def metrics(self) -> dict[str, float]:
        """How many attempts failed, how many of those took too long, and how many items were given up on, as `hooks/KIND/…`."""
        counts = {"failures": self.failures, "timeouts": self.timeouts, "dropped": self.dropped}
        return {f"hooks/{self.selected.kind}/{name}": float(count) for name, count in counts.items()}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count what becomes of an attempt, and say in words that it took too long."""
        try:
            yield
        except Exception as error:
            self.failures += 1
            if isinstance(error, TimeoutError) and not raised_in(error):  # ours, not the component's own
                self.timeouts += 1
                raise PluginError(f"It did not answer within {self.policy.timeout:g} s.") from None
            raise
        self._in_a_row = 0

    def _retrying(self, item: str) -> dict[str, Any]:
        """The policy in tenacity's terms."""

        def try_again(state: tenacity.RetryCallState) -> None:
            logger.warning("%s failed (%s), trying again", self._name(item), _brief(_error_of(state)))

        def give_up(state: tenacity.RetryCallState) -> Dropped:
            self._give_up(_error_of(state), item)
            return DROPPED

        return {
            "stop": tenacity.stop_after_attempt(self.policy.retries + 1),
            "wait": tenacity.wait_exponential(multiplier=self.policy.backoff),
            "retry": tenacity.retry_if_exception_type(Exception),
            "before_sleep": try_again,
            "retry_error_callback": give_up,
        }

    def _give_up(self, error: BaseException, item: str) -> None:
        """Give up on the item after the last attempt: drop it or raise, as the policy says."""
        attempts = f" after {self.policy.retries + 1} attempts" if self.policy.retries else ""
        failed = f"{self._name(item)} failed{attempts}"
        another = f"choose another with {self.selected.option}"
        if self.policy.on_failure == "raise":
            raise PluginError(
                f"{failed}: {_brief(error)} Repair it, {another}, or let the run go on without it: "
                f"--failure-policy {self.selected.kind}:on_failure=drop."
            ) from error
        self.dropped += 1
        self._in_a_row += 1
        logger.warning("%s and is dropped: %s", failed, _brief(error))
        if self.policy.abort_after is not None and self._in_a_row >= self.policy.abort_after:
            raise PluginError(
                f"{failed}: {_brief(error)} It was the failure number {self._in_a_row} in a row, so the run ends. "
                f"Repair it, {another}, or raise abort_after in --failure-policy."
            ) from error

    def _name(self, item: str) -> str:
        where = f" for {item}" if item else ""
        return f"The {self.selected.label}{where}"


def _error_of(state: tenacity.RetryCallState) -> BaseException:
    """What the last attempt raised."""
    error = state.outcome.exception() if state.outcome else None
    return error or PluginError("It failed.")


def _brief(error: BaseException) -> str:
    text = str(error) if isinstance(error, SlimeError) else f"{type(error).__name__}: {error}"
    return text if text.endswith(".") else f"{text}."


def _in_thread(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
    """Run on a new daemon thread: one that hangs cannot be stopped, but it keeps neither the run nor its end waiting."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # nobody can cancel it any more, so its result can always be set

    def work() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="plugin-call", daemon=True).start()
    return future
