"""Calling other people's functions: time limits, retries, and what happens when one fails for good.

Kinds of components whose failures a run can survive have a `FailurePolicy`; `--failure-policy` changes it for a run. A `Caller` applies it, checks
what comes back, counts and times, for plain and async functions alike. What a caller gives up on is `DROPPED`, and the
caller of the caller decides what is lost with it (a reward: its group).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tenacity

from slime_core.contracts.kind import FailurePolicy
from slime_core.contracts.kinds import KINDS
from slime_core.errors import ArgumentError, DataError, PluginError, SlimeError, did_you_mean
from slime_core.plugins.clock import LeftBehindError, in_thread, result_within, within
from slime_core.plugins.selection import Selected, raised_in

logger = logging.getLogger(__name__)


class Dropped:
    """The type of `DROPPED`."""

    def __repr__(self) -> str:
        return "DROPPED"


DROPPED = Dropped()

_TOLD = 5
"""How many failures of each sort a caller warns of; further ones are only counted."""


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
    _told: Counter[str] = field(default_factory=Counter, repr=False)  # warnings of each metric
    _lost: list[str] = field(default_factory=list, repr=False)  # what was dropped since the last success

    def call(self, *args: Any, item: str = "", **kwargs: Any) -> Any:
        """Call a plain function. `item` says in messages what it was called for ("sample 3"). The policy's time limit counts
        work alone: see `slime_core.plugins.clock`."""

        def attempt() -> Any:
            with self._counted():
                if self.policy.timeout is None:
                    return self.selected(*args, **kwargs)
                return result_within(self.policy.timeout, self.selected, args, kwargs)

        self.calls += 1
        return tenacity.Retrying(**self._retrying(item, ""))(attempt)

    async def call_async(self, *args: Any, item: str = "", work: str = "", **kwargs: Any) -> Any:
        """Call a plain or async function from a coroutine. A plain one runs on a thread of its own; what it returns is awaited here where
        it can be, as of a decorated async function.

        Args:
            work: what is lost with the item (a sample's group). Items of the same work that are dropped one after the other
                count as one failure in a row. By default the item itself.
        """

        def start() -> Any:
            if inspect.iscoroutinefunction(self.selected.target):
                return self.selected(*args, **kwargs)
            return finished(asyncio.wrap_future(in_thread(self.selected, args, kwargs)))

        async def finished(future: asyncio.Future[Any]) -> Any:
            made = await future
            return await made if inspect.isawaitable(made) else made

        async def attempt() -> Any:
            with self._counted():
                return await within(self.policy.timeout, start)

        self.calls += 1
        return await tenacity.AsyncRetrying(**self._retrying(item, work or item))(attempt)

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
                left = (
                    " It does not end when it is cancelled, and is left behind."
                    if isinstance(error, LeftBehindError)
                    else ""
                )
                raise PluginError(f"It did not answer within {self.policy.timeout:g} s.{left}") from None
            raise
        self._lost.clear()

    def _retrying(self, item: str, work: str) -> dict[str, Any]:
        """The policy in tenacity's terms. What is wrong with a row or an option is not tried again: it stays wrong."""

        def try_again(state: tenacity.RetryCallState) -> None:
            self._warn("failures", f"{self._name(item)} failed and is tried again: {self._brief(_error_of(state))}")

        def give_up(state: tenacity.RetryCallState) -> Dropped:
            self._give_up(_error_of(state), state.attempt_number, item, work)
            return DROPPED

        return {
            "stop": lambda state: state.attempt_number > self.policy.retries or _stays_wrong(_error_of(state)),
            "wait": tenacity.wait_exponential(multiplier=self.policy.backoff),
            "retry": tenacity.retry_if_exception_type(Exception),
            "before_sleep": try_again,
            "retry_error_callback": give_up,
        }

    def _give_up(self, error: BaseException, made: int, item: str, work: str) -> None:
        """Give up on the item after so many attempts: drop it or raise, as the policy says."""
        attempts = f" after {made} attempts" if made > 1 else ""
        failed = f"{self._name(item)} failed{attempts}"
        another = f"choose another with {self.selected.option}"
        if self.policy.on_failure == "raise":
            raise PluginError(
                f"{failed}: {self._brief(error)} Repair it, {another}, or let the run go on without it: "
                f"--failure-policy {self.selected.kind}:on_failure=drop."
            ) from error
        self.dropped += 1
        if not work or work not in self._lost:
            self._lost.append(work)
        self._warn("dropped", f"{failed} and is dropped: {self._brief(error)}")
        if self.policy.abort_after is not None and len(self._lost) >= self.policy.abort_after:
            raise PluginError(
                f"{failed}: {self._brief(error)} It was the failure number {len(self._lost)} in a row, so the run ends. "
                f"Repair it, {another}, or raise abort_after in --failure-policy."
            ) from error

    def _warn(self, metric: str, text: str) -> None:
        self._told[metric] += 1
        if self._told[metric] < _TOLD:
            logger.warning("%s", text)
        elif self._told[metric] == _TOLD:
            logger.warning("%s Further ones are counted in the metric hooks/%s/%s.", text, self.selected.kind, metric)

    def _brief(self, error: BaseException) -> str:
        return _brief(error, self.selected.target)

    def _name(self, item: str) -> str:
        where = f" for {item}" if item else ""
        return f"The {self.selected.label}{where}"


def _stays_wrong(error: BaseException) -> bool:
    """Whether another attempt would fail in the same way."""
    return isinstance(error, (ArgumentError, DataError))


def _error_of(state: tenacity.RetryCallState) -> BaseException:
    """What the last attempt raised."""
    error = state.outcome.exception() if state.outcome else None
    return error or PluginError("It failed.")


def _brief(error: BaseException, target: Any) -> str:
    """What an error says; of one that the component did not mean, also the line of its file that it came from."""
    text = str(error) if isinstance(error, SlimeError) else f"{type(error).__name__}: {error}{_line(error, target)}"
    return text if text.endswith(".") else f"{text}."


def _line(error: BaseException, target: Any) -> str:
    """` (file:line)` of the innermost line of the target's own file that an error came through; "" if it came through none."""
    file = getattr(sys.modules.get(getattr(target, "__module__", "")), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}:{lines[-1]})" if lines else ""
