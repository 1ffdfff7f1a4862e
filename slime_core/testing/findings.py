"""`Finding`: what a check found. Checks are run here, so that nothing that other people's code does ends the kit."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from slime_core.errors import ArgumentError, SlimeError
from slime_core.testing.small_run import NotChecked
from slime_core.testing.time_limit import Hangs, in_time


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        part: what was checked, such as "reward my_reward".
        check: the promise.
        status: "not checked" when a package is missing, or an option that the component cannot do without.
        why: what is wrong and what to do about it, or what is missing; empty where all is well.
        hangs: the check failed because it did not come to an end.
    """

    part: str
    check: str
    status: Literal["ok", "failed", "not checked"]
    why: str = ""
    hangs: bool = False


def verdict(part: str, promise: str, problem: str) -> Finding:
    """Return the finding that a promise is kept or, if there is a problem, that it is not."""
    return Finding(part, promise, "failed" if problem else "ok", problem)


def run_all(
    part: str, checks: Iterable[tuple[str, Callable[[], None]]], time_limit: float, hint: str = ""
) -> list[Finding]:
    """Run checks, given as (promise, check), one after the other until one hangs.

    Args:
        time_limit: seconds for each of them.
        hint: follows what an exception says, in the finding.
    """
    found: list[Finding] = []
    for promise, check in checks:
        if found and found[-1].hangs:
            return found
        found.append(_run(part, promise, check, time_limit, hint))
    return found


def _run(part: str, promise: str, check: Callable[[], None], time_limit: float, hint: str) -> Finding:
    try:
        in_time(check, time_limit)
    except NotChecked as missing:
        return Finding(part, promise, "not checked", str(missing))
    except ArgumentError as error:
        return Finding(part, promise, "not checked", f"{error} Options may follow: slime plugins check NAME --option …")
    except SlimeError as error:
        return Finding(part, promise, "failed", str(error), isinstance(error, Hangs))
    except (Exception, SystemExit) as error:  # whatever other people's code raises is a finding
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"it raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno}).{hint}"
        return Finding(part, promise, "failed", why)
    return Finding(part, promise, "ok")
