"""`Fleet`: all servers and the router of a run: started, watched, and started again when they have died. Runs in the
engine's event loop; what starts and ends processes there runs on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx

from slime_rollout_sglang.sglang import snapshot
from slime_rollout_sglang.sglang.answers import as_version
from slime_rollout_sglang.sglang.control import PATIENCE_S
from slime_rollout_sglang.sglang.errors import SGLangError
from slime_rollout_sglang.sglang.router import Router
from slime_rollout_sglang.sglang.server import Server

if TYPE_CHECKING:
    from slime_rollout_sglang.sglang.remote import RemoteServer

logger = logging.getLogger(__name__)

FIRST_NOTICE_S = 30.0
POLL_S = 0.5
STARTS_IN_A_ROW = 3
"""A server that could not be started so often is given up."""


@dataclass(eq=False)
class Member:
    """One server.

    Attributes:
        url: where it answers.
        server: what starts and ends it; None if it is external.
        state: "up" when it has the newest weights and the router sends it requests.
        failed_checks: health checks in a row.
        starts: failed ones in a row.
    """

    url: str
    server: Server | RemoteServer | None
    state: Literal["starting", "up", "given up"] = "starting"
    failed_checks: int = 0
    starts: int = 0

    @property
    def name(self) -> str:
        return f"the SGLang server {self.url}"


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
        self.members = [Member(server.url, server) for server in servers] + [Member(url, None) for url in external]
        self.counts: Counter[str] = Counter()
        self._failure: SGLangError | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._router_is_up = False

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
        """Return when a server can be asked.

        Raises:
            SGLangError: none ever will.
        """
        started, notice = time.monotonic(), FIRST_NOTICE_S
        while self._failure is None and not (self._router_is_up and self.answering):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.1, notice - (time.monotonic() - started)))
            if time.monotonic() - started >= notice:
                logger.warning("waiting for a server to be started again for %.0f s", time.monotonic() - started)
                notice *= 2
        if self._failure is not None:
            raise self._failure

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
            await asyncio.to_thread(snapshot.note_start, self._weights, member.url)
        status, log_tail = (member.server.status, member.server.log_tail) if member.server else (None, _no_log)
        await self._until(lambda: self._is_healthy(member), member.name, status, log_tail)
        await self._give_newest_weights(member)

    async def _give_newest_weights(self, member: Member) -> None:
        """Weights that were sent while the server was starting did not reach it."""
        while True:
            has = as_version((await self._json(member, "GET", "/model_info")).get("weight_version"))
            path, version = snapshot.newest(self._weights) or (None, 0)
            if has == version or (path is None and has is not None):
                return
            if path is None:  # an external server that nobody has given a version
                body = {"new_version": "0", "abort_all_requests": False}
                await self._json(member, "POST", "/update_weight_version", body)
            else:
                body = {"model_path": str(path.resolve()), "weight_version": str(version)}
                await self._json(member, "POST", "/update_weights_from_disk", body)

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
            lambda: self._router_knows(member), f"the router to take up {member.url}", None, self._router.log_tail
        )
        member.state, member.failed_checks, member.starts = "up", 0, 0
        self._changed.set()

    async def _until(
        self,
        is_there: Callable[[], Any],
        what: str,
        status: Callable[[], int | None] | None,
        log_tail: Callable[[], str],
    ) -> None:
        """Wait for something to answer, and say so."""
        started, notice = time.monotonic(), FIRST_NOTICE_S
        while not await is_there():
            waited = time.monotonic() - started
            ended = await asyncio.to_thread(status) if status is not None else None
            if ended is not None:
                raise SGLangError(f"{what} ended with status {ended} before it answered. {await _said(log_tail)}")
            if waited > self._args.sglang_server_start_timeout:
                raise SGLangError(
                    f"{what} does not answer after {waited:.0f} s (--sglang-server-start-timeout). {await _said(log_tail)}"
                )
            if waited >= notice:
                logger.warning("waiting for %s for %.0f s", what, waited)
                notice *= 2
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
                await asyncio.gather(*(self._check(member) for member in self.members if member.state == "up"))

    async def _check(self, member: Member) -> None:
        if await self._is_healthy(member, self._args.rollout_health_check_timeout) or snapshot.is_being_updated(
            self._weights
        ):
            member.failed_checks = 0
            return
        member.failed_checks += 1
        if member.state == "up" and member.failed_checks >= self._args.rollout_health_check_failures:
            await self._lose(member, f"failed {member.failed_checks} health checks in a row")

    async def _lose(self, member: Member, why: str) -> None:
        """A server is dead."""
        member.state = "starting"
        said = await _said(member.server.log_tail if member.server is not None else _no_log)
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
            try:
                await self._launch(member)
                await self._register(member)
                logger.warning("%s is back", member.name)
            except (SGLangError, httpx.HTTPError, OSError) as error:
                member.starts += 1
                logger.warning("%s could not be started: %s", member.name, error)
                if member.starts >= STARTS_IN_A_ROW:
                    member.state = "given up"
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

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("watching the SGLang servers failed", exc_info=error)
            self._fail(SGLangError(f"Watching the SGLang servers failed: {error!r}"))

    # ------------------------------------------------------------------------------------------------------- asking

    async def _is_healthy(self, member: Member, timeout: float = 30.0) -> bool:
        try:
            return (await self._http.get(f"{member.url}/health", timeout=timeout)).status_code == 200
        except httpx.HTTPError:
            return False

    async def _router_knows(self, member: Member) -> bool:
        try:
            worker = (await self._router.workers(self._http)).get(member.url)
        except httpx.HTTPError:
            return False
        return worker is not None and worker.get("is_healthy", True)

    async def _json(self, member: Member, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self._http.request(method, member.url + path, json=body, timeout=PATIENCE_S)
        if answer.status_code != 200:
            raise SGLangError(f"{member.name} answered {path} with {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found


def _external_url(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


def _no_log() -> str:
    return "It is external."


async def _said(log_tail: Callable[[], str]) -> str:
    return await asyncio.to_thread(log_tail)
