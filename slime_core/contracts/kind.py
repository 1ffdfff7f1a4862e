"""`Kind`: one row of the table of kinds. `FailurePolicy`: what happens when a component of a kind fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Check = Callable[[Any, tuple[Any, ...]], str | None]
"""`check(result, args)`: what is wrong with a result, as "X; expected Y", or None. `args` are the positional arguments
that the component was called with."""

Hint = Callable[[Exception, Any, tuple[Any, ...]], str]
"""`hint(error, component, args)`: a sentence on where an error that a component raised may come from, or ""."""


@dataclass(frozen=True)
class FailurePolicy:
    """What to do when a component fails: raises, exceeds its time, or returns something that it must not.

    Attributes:
        timeout: seconds for one attempt; None: no limit.
        retries: attempts after the first one.
        backoff: seconds before the first retry; doubles with each further one.
        on_failure: after the last attempt "raise" ends the run, "drop" gives up on this item and goes on.
        abort_after: so many drops in a row end the run all the same; None: never.
    """

    timeout: float | None = None
    retries: int = 0
    backoff: float = 1.0
    on_failure: Literal["raise", "drop"] = "raise"
    abort_after: int | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of component: which hook provides it, what contract it keeps, which options choose it.

    Attributes:
        name: what messages and `slime plugins` call it.
        hook: the provider hook in `slime_core.hookspecs`.
        contract: the function or class that a component is compared with.
        options: the options whose value is a component's name. The first one is mentioned in messages. Where several are
            given in a run, the last one of this list counts.
        alternative: a second contract that will do as well.
        extras: keyword parameters that a component may ask for by naming them.
        abilities: protocols of further members that a component of a class contract may have. Members that it has are
            compared with them, and names that nearly match are reported.
        marks: attributes, set by decorators, that a component may carry.
        prefixes: a name may begin with one of these; whoever calls the component says what that means.
        normalise: makes of other forms in which a component may return something the one of its contract; what it does not know
            it returns as it is, for `check`.
        check: compares what a component returns with its contract.
        hint: adds to what a component raised where that may come from.
        policy: what happens when a component fails, unless `--failure-policy` says otherwise. None: a failure always ends
            the run, and `--failure-policy` refuses the kind.
    """

    name: str
    hook: str
    contract: Callable[..., Any]
    options: tuple[str, ...]
    alternative: Callable[..., Any] | None = None
    extras: tuple[str, ...] = ()
    abilities: tuple[type, ...] = ()
    marks: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    normalise: Callable[[Any], Any] | None = None
    check: Check | None = None
    hint: Hint | None = None
    policy: FailurePolicy | None = None

    @property
    def contract_path(self) -> str:
        """Where the contract is written, for messages: "slime_core.contracts.loss.loss"."""
        return f"{self.contract.__module__}.{self.contract.__name__}"
