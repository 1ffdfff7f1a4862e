"""`Memory`: the servers take turns with the trainer in having the memory of the GPUs (`--offload`). `Fleet` uses it.

While memory is given back, nothing is asked of a server that it would have to compute, and none is started: one that dies is
started when the others have all of their memory again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal

import httpx

from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.member import WEIGHTS, Member


class Memory:
    """That of all servers.

    Args:
        members: the servers.
        when: waits until something is true, and says what for.
        lose: what to do about a server that does not answer, and why.

    Attributes:
        has: which of it the servers have.
        checking: held by who asks servers whether they are healthy, which is computing; only while they have all of it.
    """

    def __init__(
        self,
        members: Sequence[Member],
        when: Callable[[Callable[[], bool], str], Awaitable[None]],
        lose: Callable[[Member, str], Awaitable[None]],
    ) -> None:
        self._members, self._when, self._lose = members, when, lose
        self.has: Literal["all", "weights", "none"] = "all"
        self.checking = asyncio.Lock()
        self._changing = asyncio.Lock()

    async def give_back(self, end_requests: Callable[[], Awaitable[None]]) -> None:
        """Let all servers give it back. Waits for those that are being started.

        Args:
            end_requests: called when no further ones are begun.

        Raises:
            SGLangError: one does not.
        """
        async with self._changing:
            while self.has == "all":
                await self._when(self._none_is_starting, "SGLang servers to start, which then give back their memory")
                async with self.checking:
                    self.has = "none" if self._none_is_starting() else "all"
            self.has = "none"
            await end_requests()
            await self._ask_all(Member.give_back_memory)

    async def take_weights(self) -> None:
        """Let all servers take what their weights need.

        Raises:
            SGLangError: one does not.
        """
        async with self._changing:
            if self.has == "none":
                await self._ask_all(lambda member: member.take_memory(WEIGHTS))
                self.has = "weights"

    async def take_rest(self) -> None:
        """Let servers that have their weights take everything else.

        Raises:
            SGLangError: one does not.
        """
        async with self._changing:
            if self.has == "weights":
                await self._ask_all(Member.take_memory)
                self.has = "all"

    def _none_is_starting(self) -> bool:
        return all(member.state != "starting" for member in self._members)

    async def _ask_all(self, ask: Callable[[Member], Coroutine[Any, Any, None]]) -> None:
        await asyncio.gather(*(self._ask(ask, member) for member in self._members if member.state == "up"))

    async def _ask(self, ask: Callable[[Member], Coroutine[Any, Any, None]], member: Member) -> None:
        """One that does not answer is ended: so its memory is free, whatever it did."""
        try:
            await ask(member)
        except httpx.HTTPError as error:
            why = f"did not give back or take its memory ({error!r})"
            if member.server is None:
                raise SGLangError(f"{member.name} {why}.") from error
            await self._lose(member, why)
            await asyncio.to_thread(member.server.close)
