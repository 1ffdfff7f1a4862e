"""`Launcher`: starts servers and the router of a `Fleet`, and waits until they answer. It runs in the engine's event
loop; what starts processes runs on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from slime_core.errors import ArgumentError
from slime_core.runtime.handles import Notices
from slime_engine_sglang import snapshot
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.member import Member
from slime_engine_sglang.router import Router
from slime_engine_sglang.server import gives_back_memory, no_group_of

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments

POLL_S = 0.5
"""How many seconds pass between two questions whether something has come up, or has ended."""


class Launcher:
    """Starts the servers and the router of a run.

    Args:
        args: the options of the run.
        router: the router in front of the servers.
        weights: the folder of the newest weights.
        http: the connections of the engine's event loop.
    """

    def __init__(self, args: SGLangRunArguments, router: Router, weights: Path, http: httpx.AsyncClient) -> None:
        self._args, self._router, self._weights, self._http = args, router, weights, http

    async def start_server(self, member: Member) -> None:
        """Start a server with the newest weights there are, and return when it answers and has them."""
        path, version = snapshot.newest(self._weights) or (Path(self._args.hf_checkpoint), 0)
        if member.server is not None:
            await asyncio.to_thread(member.server.start, str(path), version)
            member.away = frozenset()
            await asyncio.to_thread(snapshot.count_start, self._weights, member.url)
        await self._wait_for(member.is_healthy, member.name, member.status, member.log_tail)
        if member.server is None and gives_back_memory(self._args):
            await member.require_memory_saver()
        await member.load_newest_weights(self._weights)
        await member.learn()
        if member.stages > 1 and self._args.update_weight_transport == "nccl":
            raise ArgumentError(no_group_of(f"{member.name} has {member.stages} pipeline stages"))

    async def start_router(self) -> None:
        """Start the router. It is not ready yet."""
        await asyncio.to_thread(self._router.start)

    async def wait_for_router(self) -> None:
        """Return when the router answers."""
        await self._wait_for(
            lambda: self._router.answers(self._http),
            f"the router {self._router.url}",
            self._router.status,
            self._router.log_tail,
        )

    async def register(self, member: Member, check: Callable[[], None]) -> None:
        """Make a server a worker of the router, and return when the router sends it requests. A router that is started again
        meanwhile is told of the server again.

        Args:
            check: is called while this waits, and raises what ends the waiting.
        """
        told: int | None = None

        async def is_taken_up() -> bool:
            nonlocal told
            check()
            if told != self._router.starts:
                started = self._router.starts
                with contextlib.suppress(httpx.HTTPError):
                    await self._router.add(self._http, member.url)
                    told = started
            return await self._router.knows(self._http, member.url)

        await self._wait_for(
            is_taken_up,
            f"{member.name} (which the router is to take up)",
            member.status,
            lambda: f"{member.log_tail()}\n{self._router.log_tail()}",
        )

    async def unregister(self, member: Member) -> None:
        """Remove a server from the router's workers."""
        await self._router.remove(self._http, member.url)

    async def _wait_for(
        self,
        is_there: Callable[[], Awaitable[bool]],
        what: str,
        status: Callable[[], int | None],
        log_tail: Callable[[], str],
    ) -> None:
        """Wait for something to answer, and log that it is waited for.

        Args:
            is_there: whether it answers.
            what: its name in messages.
            status: its exit status if it has ended.
            log_tail: the end of its log.

        Raises:
            SGLangError: it ended, or does not answer within `--sglang-server-start-timeout`.
        """
        notices = Notices(what)
        while not await is_there():
            ended = await asyncio.to_thread(status)
            if ended is not None:
                raise SGLangError(
                    f"{what} ended with status {ended} before it answered. {await asyncio.to_thread(log_tail)}"
                )
            if notices.waited > self._args.sglang_server_start_timeout:
                raise SGLangError(
                    f"{what} does not answer after {notices.waited:.0f} s (--sglang-server-start-timeout). "
                    f"{await asyncio.to_thread(log_tail)}"
                )
            notices.say_if_due()
            await asyncio.sleep(POLL_S)
