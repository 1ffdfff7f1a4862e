"""`FleetMemory`: the servers take turns with the trainer in having the memory of the GPUs (`--offload`). `Fleet` uses
it.

While memory is given back, no server is asked for anything that it would have to compute, and none is started: one that
dies is started when the others have all of their memory again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal

import httpx

from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.member import WEIGHTS, Member


class FleetMemory:
    """The memory of all servers.

    Args:
        members: the servers.
        wait_until: `wait_until(condition, what)` waits until something is true, and says what is waited for.
        lose: `lose(member, why)` handles a server that does not answer.

    Attributes:
        has: which part of their memory the servers have.
        checking: held while servers are asked whether they are healthy, which is only done while they have all of their
            memory, since they compute then.
    """

    def __init__(
        self,
        members: Sequence[Member],
        wait_until: Callable[[Callable[[], bool], str], Awaitable[None]],
        lose: Callable[[Member, str], Awaitable[None]],
    ) -> None:
        self._members, self._wait_until, self._lose = members, wait_until, lose
        self.has: Literal["all", "weights", "none"] = "all"
        self.checking = asyncio.Lock()
        self._changing = asyncio.Lock()

    async def give_back(self, end_requests: Callable[[], Awaitable[None]]) -> None:
        """Let all servers give back their memory. Waits for servers that are being started.

        Args:
            end_requests: ends the requests that are running; called when no further ones begin.

        Raises:
            SGLangError: a server does not give back its memory.
        """
        async with self._changing:
            while self.has == "all":
                await self._wait_until(
                    self._none_is_starting, "SGLang servers to start, which then give back their memory"
                )
                async with self.checking:
                    self.has = "none" if self._none_is_starting() else "all"
            self.has = "none"
            await end_requests()
            await self._for_all(Member.give_back_memory)

    async def take_weights(self) -> None:
        """Let all servers take the memory that their weights need.

        Raises:
            SGLangError: a server does not take it.
        """
        async with self._changing:
            if self.has == "none":
                await self._for_all(lambda member: member.take_memory(WEIGHTS))
                self.has = "weights"

    async def take_rest(self) -> None:
        """Let servers that have the memory of their weights take the rest.

        Raises:
            SGLangError: a server does not take it.
        """
        async with self._changing:
            if self.has == "weights":
                await self._for_all(Member.take_memory)
                self.has = "all"

    def _none_is_starting(self) -> bool:
        return all(member.state != "starting" for member in self._members)

    async def _for_all(self, work: Callable[[Member], Coroutine[Any, Any, None]]) -> None:
        """Do the same with all servers that are up."""
        await asyncio.gather(*(self._for_one(work, member) for member in self._members if member.state == "up"))

    async def _for_one(self, work: Callable[[Member], Coroutine[Any, Any, None]], member: Member) -> None:
        """Do something with one server. A server that does not answer is ended, so that its memory is free in any
        case."""
        try:
            await work(member)
        except httpx.HTTPError as error:
            why = f"did not give back or take its memory ({error!r})"
            if member.server is None:
                raise SGLangError(f"{member.name} {why}.") from error
            await self._lose(member, why)
            await asyncio.to_thread(member.server.close)
