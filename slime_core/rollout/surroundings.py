"""`Surroundings`: what of the run can be reached from a generate function or reward that is being called.

Native functions are given what they name among their parameters. Functions that were written for another program reach the
engine by other ways, a URL or a global object; what plays these parts for them finds the engine here. Rollout functions call
generate functions and rewards within `surrounded_by`; see `slime_core.rollout.surroundings.current`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.engine import Generates
    from slime_core.plugins import Plugins
    from slime_core.rollout.rewards import Rewards

Result = TypeVar("Result")


@dataclass(frozen=True)
class Surroundings:
    """What surrounds a call. Made in the event loop of the rollout.

    Attributes:
        args: the arguments of the run.
        engine: generates for this sample, as for a function that names the parameter `engine`: what it generates is counted,
            a failure is the engine's, and once sampling is stopped every request is answered with "abort". One of a reward is
            answered as long as the reward is waited for.
        rewards: score samples, as the rollout scores them.
        plugins: of the run.
        stopped: whether sampling was stopped, so that nothing more shall be begun.
        evaluation: whether evaluation prompts are answered.
        seed: for what is generated with sampling parameters of the function's own; calls of the engine with one seed draw
            different random numbers.
        images: the encoded images of the sample, which `engine` is shown where a request has places for images and names none.
        loop: where the engine is asked.
    """

    args: RunArguments
    engine: Generates
    rewards: Rewards
    plugins: Plugins
    stopped: Callable[[], bool]
    evaluation: bool = False
    seed: int | None = None
    images: Sequence[bytes] = ()
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def in_loop(self, asked: Coroutine[Any, Any, Result]) -> Result:
        """Await something of the engine's from any event loop: a function on a thread may have one of its own."""
        if asyncio.get_running_loop() is self.loop:
            return await asked
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self.loop))


_current: contextvars.ContextVar[Surroundings | None] = contextvars.ContextVar("slime_surroundings", default=None)


def current() -> Surroundings | None:
    """The surroundings of the generate function or reward that this code is called by, tasks and threads that it starts with
    `asyncio` or `contextvars.copy_context` included; None elsewhere."""
    return _current.get()


@contextmanager
def surrounded_by(surroundings: Surroundings) -> Iterator[None]:
    """Let `current` return these within the context."""
    token = _current.set(surroundings)
    try:
        yield
    finally:
        _current.reset(token)
