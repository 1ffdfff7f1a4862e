"""`Fleet`: all servers and the router of a run: started, watched, and started again when they have died. Runs in the
engine's event loop; what starts and ends processes there runs on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from slime_core.runtime.handles import Notices
from slime_engine_sglang import snapshot
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.member import Member
from slime_engine_sglang.memory import Memory
from slime_engine_sglang.router import Router
from slime_engine_sglang.server import Server, gives_back_memory

if TYPE_CHECKING:
    from slime_engine_sglang.remote import RemoteServer

logger = logging.getLogger(__name__)

POLL_S = 0.5
STARTS_IN_A_ROW = 3
"""A server that could not be started so often is given up."""


class Fleet:
    """The servers of a run.

    Args:
        args: all options of the run.
        servers: those to start; none with `--rollout-external-engine-addrs`.
        router: in front of them.
        weights: folder of the newest weights.
        http: of the engine's event loop.

    Attributes:
        counts: "restarts" and "router_restarts".
    """

    def __init__(
        self,
        args: Any,
        servers: Sequence[Server | RemoteServer],
        router: Router,
        weights: Path,
        http: httpx.AsyncClient,
    ) -> None:
        self._args, self._router, self._weights, self._http = args, router, weights, http
        external = [_external_url(address) for address in args.rollout_external_engine_addrs or ()]
        self.members = [Member(server.url, server, http) for server in servers]
        self.members += [Member(url, None, http) for url in external]
        self.counts: Counter[str] = Counter()
        self._failure: SGLangError | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._router_is_up = False
        self._memory = Memory(self.members, self._when, self._lose)

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    @property
    def answering(self) -> list[str]:
        """The servers that may have requests."""
        return [member.url for member in self.members if member.state == "up"]

    @property
    def on_gpu(self) -> bool | None:
        """Whether the servers compute on GPUs; None if they are external."""
        return next((member.server.on_gpu for member in self.members if member.server is not None), None)

    @property
    def generate_url(self) -> str:
        return f"{self._router.url}/generate"

    async def start(self) -> None:
        """Start everything, and return when all of it answers.

        Raises:
            SGLangError: something does not start; with the end of its log.
        """
        snapshot.clear(self._weights)
        await asyncio.to_thread(self._router.start)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bring_router_up())
            for member in self.members:
                tasks.create_task(self._launch(member))
        for member in self.members:
            await self._register(member)
        self._begin(self._watch())

    async def usable(self) -> None:
        """Return when a server can be asked. Servers that have the memory of their weights alone take the rest.

        Raises:
            SGLangError: none ever will.
        """
        await self._when(lambda: self._memory.has != "none", "the SGLang servers to be given memory")
        if self._memory.has == "weights":
            await asyncio.shield(self._memory.take_rest())  # whoever waits for it may stop waiting
        await self._when(lambda: self._router_is_up and bool(self.answering), "a server to be started again")

    async def give_back_memory(self, end_requests: Callable[[], Awaitable[None]]) -> None:
        """Let all servers give back their memory; further requests wait until they have it again.

        Args:
            end_requests: ends those that are running.

        Raises:
            SGLangError: one does not.
        """
        await self._memory.give_back(end_requests)
        self._raise_failure()

    async def take_memory(self) -> None:
        """The inverse. At first servers take what their weights need, and the rest when something is generated: so not while
        new weights come from a trainer that has its memory as well.

        Raises:
            SGLangError: one does not.
        """
        await self._memory.take_weights()
        self._changed.set()
        self._raise_failure()
        if not self.answering:
            await self.usable()

    async def close(self) -> None:
        """End everything that was started here."""
        self._fail(SGLangError("The engine 'sglang' was closed."))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        own: list[Server | RemoteServer | Router] = [
            member.server for member in self.members if member.server is not None
        ]
        if self._router.is_external:
            for member in self.members:
                with contextlib.suppress(SGLangError, httpx.HTTPError):
                    await self._router.remove(self._http, member.url)
        await asyncio.gather(*(asyncio.to_thread(part.close) for part in [*own, self._router]))

    # ----------------------------------------------------------------------------------------------------- starting

    async def _launch(self, member: Member) -> None:
        """Start a server with the newest weights there are, and return when it has them."""
        path, version = snapshot.newest(self._weights) or (Path(self._args.hf_checkpoint), 0)
        if member.server is not None:
            await asyncio.to_thread(member.server.start, str(path), version)
            member.away = frozenset()
            await asyncio.to_thread(snapshot.note_start, self._weights, member.url)
        await self._until(member.is_healthy, member.name, member.status, member.log_tail)
        if member.server is None and gives_back_memory(self._args):
            await member.require_memory_saver()
        await member.give_newest_weights(self._weights)

    async def _bring_router_up(self) -> None:
        await self._until(
            lambda: self._router.answers(self._http),
            f"the router {self._router.url}",
            self._router.status,
            self._router.log_tail,
        )
        self._router_is_up = True

    async def _register(self, member: Member) -> None:
        """Let the router send it requests, and return when it does."""
        await self._router.add(self._http, member.url)
        await self._until(
            lambda: self._router.knows(self._http, member.url),
            f"the router to take up {member.url}",
            None,
            self._router.log_tail,
        )
        member.state, member.failed_checks, member.starts = "up", 0, 0
        self._changed.set()

    async def _when(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to change here, and say so.

        Raises:
            SGLangError: nothing can be generated any more.
        """
        notices = Notices(what)
        while self._failure is None and not true():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.1, notices.left))
            notices.say_if_due()
        self._raise_failure()

    async def _until(
        self,
        is_there: Callable[[], Any],
        what: str,
        status: Callable[[], int | None] | None,
        log_tail: Callable[[], str],
    ) -> None:
        """Wait for something to answer, and say so."""
        notices = Notices(what)
        while not await is_there():
            ended = await asyncio.to_thread(status) if status is not None else None
            if ended is not None:
                raise SGLangError(f"{what} ended with status {ended} before it answered. {await _said(log_tail)}")
            if notices.waited > self._args.sglang_server_start_timeout:
                raise SGLangError(
                    f"{what} does not answer after {notices.waited:.0f} s (--sglang-server-start-timeout). "
                    f"{await _said(log_tail)}"
                )
            notices.say_if_due()
            await asyncio.sleep(POLL_S)

    # ----------------------------------------------------------------------------------------------------- watching

    async def _watch(self) -> None:
        """Notice what has died."""
        last_check = time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            if self._router_is_up and await asyncio.to_thread(self._router.status) is not None:
                self._router_is_up = False
                self._begin(self._revive_router())
            for member in self.members:
                if member.state == "up" and member.server is not None:
                    status = await asyncio.to_thread(member.server.status)
                    if status is not None:
                        await self._lose(member, f"ended with status {status}")
            if time.monotonic() - last_check >= self._args.rollout_health_check_interval:
                last_check = time.monotonic()
                async with self._memory.checking:
                    if self._memory.has == "all":
                        await asyncio.gather(*(self._check(member) for member in self.members if member.state == "up"))

    async def _check(self, member: Member) -> None:
        timeout = self._args.rollout_health_check_timeout
        if await member.is_healthy(timeout) or snapshot.is_being_updated(self._weights):
            member.failed_checks = 0
            return
        member.failed_checks += 1
        if member.state == "up" and member.failed_checks >= self._args.rollout_health_check_failures:
            await self._lose(member, f"failed {member.failed_checks} health checks in a row")

    async def _lose(self, member: Member, why: str) -> None:
        """A server is dead."""
        if member.state != "up":  # and somebody else has noticed
            return
        member.state = "starting"
        said = await _said(member.log_tail)
        if not self._args.use_fault_tolerance:
            self._fail(SGLangError(f"{member.name} {why}, and --no-use-fault-tolerance was given. {said}"))
            return
        logger.warning("%s %s; it is started again. %s", member.name, why, said)
        self.counts["restarts"] += 1
        self._begin(self._revive(member))

    async def _revive(self, member: Member) -> None:
        with contextlib.suppress(SGLangError, httpx.HTTPError):
            await self._router.remove(self._http, member.url)
        while member.state == "starting":
            while self._memory.has != "all":
                await asyncio.sleep(POLL_S)
            try:
                await self._launch(member)
                await self._register(member)
                logger.warning("%s is back", member.name)
            except (SGLangError, httpx.HTTPError, OSError) as error:
                member.starts += 1
                logger.warning("%s could not be started: %s", member.name, error)
                if member.starts >= STARTS_IN_A_ROW:
                    member.state = "given up"
                    self._changed.set()
                    if all(other.state == "given up" for other in self.members):
                        self._fail(SGLangError(f"No SGLang server could be started again. The last one: {error}"))

    async def _revive_router(self) -> None:
        if not self._args.use_fault_tolerance:
            self._fail(SGLangError(f"The router died. {self._router.log_tail()}"))
            return
        logger.warning("the router died; it is started again. %s", self._router.log_tail())
        self.counts["router_restarts"] += 1
        try:
            await asyncio.to_thread(self._router.start)
            await self._bring_router_up()
            for member in self.members:
                if member.state == "up":
                    await self._register(member)
            self._changed.set()
        except (SGLangError, httpx.HTTPError) as error:
            self._fail(SGLangError(f"The router could not be started again: {error}"))

    def _fail(self, failure: SGLangError) -> None:
        """Nothing can be generated any more."""
        self._failure = self._failure or failure
        self._changed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("watching the SGLang servers failed", exc_info=error)
            self._fail(SGLangError(f"Watching the SGLang servers failed: {error!r}"))


def _external_url(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


async def _said(log_tail: Callable[[], str]) -> str:
    return await asyncio.to_thread(log_tail)
