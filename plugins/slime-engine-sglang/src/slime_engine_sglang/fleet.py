"""`Fleet`: all servers and the router of a run. They are started, watched, and started again when they have died. It
runs in the engine's event loop; what starts and ends processes runs on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from zlib import crc32

import httpx

from slime_core.errors import ArgumentError
from slime_core.runtime.handles import Notices
from slime_engine_sglang import launcher, snapshot
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.launcher import Launcher
from slime_engine_sglang.member import Member
from slime_engine_sglang.memory import FleetMemory
from slime_engine_sglang.router import Router
from slime_engine_sglang.server import Server

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments
    from slime_engine_sglang.remote import RemoteServer

logger = logging.getLogger(__name__)

STARTS_IN_A_ROW = 3
"""A server or router that could not be started so often in a row is given up."""
_PORTS = {"http": 80, "https": 443}


class Fleet:
    """The servers of a run, and the router in front of them.

    Args:
        args: the options of the run.
        servers: the servers to start; none with `--rollout-external-engine-addrs`.
        router: the router.
        weights: the folder of the newest weights.
        http: the connections of the engine's event loop.

    Attributes:
        members: all servers.
        counts: how often servers ("restarts") and the router ("router_restarts") were started again.
    """

    def __init__(
        self,
        args: SGLangRunArguments,
        servers: Sequence[Server | RemoteServer],
        router: Router,
        weights: Path,
        http: httpx.AsyncClient,
    ) -> None:
        self._args, self._router, self._weights = args, router, weights
        external = [_external_url(address) for address in args.rollout_external_engine_addrs or ()]
        self.members = [Member(server.url, server, http) for server in servers]
        self.members += [Member(url, None, http) for url in external]
        self.counts: Counter[str] = Counter()
        self._launcher = Launcher(args, router, weights, http)
        self._failure: SGLangError | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._router_is_up = False
        self._memory = FleetMemory(self.members, self._wait_until, self._lose)

    @property
    def urls(self) -> list[str]:
        """The addresses of all servers."""
        return [member.url for member in self.members]

    @property
    def answering(self) -> list[str]:
        """The addresses of the servers that may have requests."""
        return [member.url for member in self.members if member.state == "up"]

    @property
    def context(self) -> int | None:
        """The longest prompt and response together that every server takes, in tokens; None: no server says it."""
        return min((member.context for member in self.members if member.context), default=None)

    @property
    def ranks(self) -> dict[str, int]:
        """The number of tensor-parallel ranks of each server, by its address. One that does not tell has as many as
        `--rollout-num-gpus-per-engine` says."""
        return {member.url: member.ranks or self._args.rollout_num_gpus_per_engine for member in self.members}

    @property
    def on_gpu(self) -> bool | None:
        """Whether the servers compute on GPUs; None if they are external."""
        return next((member.server.on_gpu for member in self.members if member.server is not None), None)

    def generate_url(self, key: bytes | None = None) -> str:
        """The address to which a request is sent: the router's.

        Args:
            key: of a request that the router would change, such as one with images, of which it leaves out return_prompt_token_ids, or
                one with logit_bias. It goes to a server itself, the same one for the same key.
        """
        if key is not None and (there := self.answering):
            return f"{there[crc32(key) % len(there)]}/generate"
        return f"{self._router.url}/generate"

    async def start(self) -> None:
        """Start everything, and return when all of it answers.

        Raises:
            SGLangError: something does not start; the message has the end of its log.
        """
        snapshot.clear(self._weights)
        await self._launcher.start_router()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wait_for_router())
            for member in self.members:
                tasks.create_task(self._launcher.start_server(member))
        self._begin(self._watch())
        if self._args.use_fault_tolerance:  # without it nobody notes that servers are paused for new weights
            self._begin(self._check_health())
        async with asyncio.TaskGroup() as tasks:
            for member in self.members:
                tasks.create_task(self._register(member))

    async def wait_until_usable(self) -> None:
        """Return when a server can be sent requests. Servers that have only the memory of their weights take the rest.

        Raises:
            SGLangError: no server will ever be there.
        """
        await self._wait_until(lambda: self._memory.has != "none", "the SGLang servers to be given memory")
        if self._memory.has == "weights":
            await asyncio.shield(self._memory.take_rest())  # whoever waits for it may stop waiting
        await self._wait_until(
            lambda: any(member.state == "up" and member.known for member in self.members),
            "a server to be started again",
        )

    async def give_back_memory(self, end_requests: Callable[[], Awaitable[None]]) -> None:
        """Let all servers give back their memory. Further requests wait until they have it again.

        Args:
            end_requests: ends the requests that are running.

        Raises:
            SGLangError: a server does not give back its memory.
        """
        await self._memory.give_back(end_requests)
        self._raise_failure()

    async def take_memory(self) -> None:
        """Let all servers take their memory again.

        At first they take what their weights need. They take the rest when something is generated, and so not while new
        weights come from a trainer that has its memory as well.

        Raises:
            SGLangError: a server does not take its memory.
        """
        await self._memory.take_weights()
        self._changed.set()
        self._raise_failure()
        if not self.answering:
            await self.wait_until_usable()

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
                    await self._launcher.unregister(member)
        await asyncio.gather(*(asyncio.to_thread(part.close) for part in [*own, self._router]))

    async def _wait_for_router(self) -> None:
        await self._launcher.wait_for_router()
        self._router_is_up = True

    async def _register(self, member: Member) -> None:
        """Let the router send a server requests."""
        await self._make_known(member)
        member.state, member.failed_checks, member.failed_starts = "up", 0, 0
        self._changed.set()

    async def _make_known(self, member: Member) -> None:
        await self._launcher.register(member, self._raise_failure)
        member.known = True
        self._changed.set()

    async def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition of the fleet is true, and log what is waited for.

        Raises:
            SGLangError: nothing can be generated any more.
        """
        notices = Notices(what)
        while self._failure is None and not condition():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.1, notices.left))
            notices.say_if_due()
        self._raise_failure()

    # ----------------------------------------------------------------------------------------------------- watching

    async def _watch(self) -> None:
        """Notice for ever what has died, and start it again."""
        while True:
            await asyncio.sleep(launcher.POLL_S)
            if self._router_is_up and await asyncio.to_thread(self._router.status) is not None:
                self._router_is_up = False
                for member in self.members:
                    member.known = False
                self._begin(self._revive_router())
            for member in self.members:
                if member.state == "up" and member.server is not None:
                    status = await asyncio.to_thread(member.server.status)
                    if status is not None:
                        await self._lose(member, f"ended with status {status}")

    async def _check_health(self) -> None:
        """Ask servers for ever whether they are healthy. A task of its own, since one that hangs takes long to ask."""
        while True:
            await asyncio.sleep(self._args.rollout_health_check_interval)
            async with self._memory.checking:
                if self._memory.has == "all":
                    await asyncio.gather(*(self._check(member) for member in self.members if member.state == "up"))

    async def _check(self, member: Member) -> None:
        """Make one health check of a server."""
        timeout = self._args.rollout_health_check_timeout
        if await member.is_healthy(timeout) or snapshot.is_being_updated(self._weights):
            member.failed_checks = 0
            return
        member.failed_checks += 1
        if member.state == "up" and member.failed_checks >= self._args.rollout_health_check_failures:
            await self._lose(member, f"failed {member.failed_checks} health checks in a row")

    async def _lose(self, member: Member, why: str) -> None:
        """Start a server again that has died; without fault tolerance, fail."""
        if member.state != "up" or self._failure is not None:  # somebody else has noticed already, or it is too late
            return
        member.state = "starting"
        log_tail = await asyncio.to_thread(member.log_tail)
        if not self._args.use_fault_tolerance:
            self._fail(SGLangError(f"{member.name} {why}, and --no-use-fault-tolerance was given. {log_tail}"))
            return
        logger.warning("%s %s; it is started again. %s", member.name, why, log_tail)
        self.counts["restarts"] += 1
        self._begin(self._revive(member))

    async def _revive(self, member: Member) -> None:
        """Try to start a server again until it is there or given up."""
        with contextlib.suppress(SGLangError, httpx.HTTPError):
            await self._launcher.unregister(member)
        while member.state == "starting" and self._failure is None:
            while self._memory.has != "all":
                await asyncio.sleep(launcher.POLL_S)
            try:
                await self._launcher.start_server(member)
                await self._register(member)
                logger.warning("%s is back", member.name)
            except (SGLangError, httpx.HTTPError, OSError) as error:
                member.failed_starts += 1
                logger.warning("%s could not be started: %s", member.name, error)
                if member.failed_starts >= STARTS_IN_A_ROW:
                    member.state = "given up"
                    self._changed.set()
                    if all(other.state == "given up" for other in self.members):
                        self._fail(SGLangError(f"No SGLang server could be started again. The last one: {error}"))

    async def _revive_router(self) -> None:
        """Start the router again and register the servers; without fault tolerance, fail."""
        if not self._args.use_fault_tolerance:
            self._fail(SGLangError(f"The router died. {self._router.log_tail()}"))
            return
        logger.warning("the router died; it is started again. %s", self._router.log_tail())
        self.counts["router_restarts"] += 1
        for attempt in range(1, STARTS_IN_A_ROW + 1):
            try:
                await self._launcher.start_router()
                await self._wait_for_router()
                break
            except (SGLangError, OSError) as error:
                logger.warning("the router could not be started: %s", error)
                if attempt == STARTS_IN_A_ROW:
                    self._fail(SGLangError(f"The router could not be started again: {error}"))
                    return
        for member in self.members:
            if member.state == "up":  # others are registered when they have been started
                self._begin(self._register_again(member))

    async def _register_again(self, member: Member) -> None:
        """Make a server known to a router that was started again. One that does not become known is started again."""
        try:
            await self._make_known(member)
        except (SGLangError, httpx.HTTPError) as error:
            await self._lose(member, f"is not taken up by the router ({error})")

    def _fail(self, failure: SGLangError) -> None:
        """Note that nothing can be generated any more; whoever waits for a server gets the error."""
        self._failure = self._failure or failure
        self._changed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task, which ends with the fleet."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("watching the SGLang servers failed", exc_info=error)
            self._fail(SGLangError(f"Watching the SGLang servers failed: {error!r}"))


def _external_url(address: str) -> str:
    """Return the URL, with a port, of an address of --rollout-external-engine-addrs; without one it has that of its scheme.

    Raises:
        ArgumentError: it names no server.
    """
    parts = urlsplit((address if "://" in address else f"http://{address}").rstrip("/"))
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0 or parts.scheme not in _PORTS:
        raise ArgumentError(
            f"--rollout-external-engine-addrs: {address!r} is not the address of a server. Give HOST:PORT, or a URL that begins "
            "with http:// or https://."
        )
    return urlunsplit(parts if port else parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{_PORTS[parts.scheme]}"))
