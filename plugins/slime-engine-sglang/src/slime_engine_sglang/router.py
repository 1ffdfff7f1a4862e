"""`Router`: sglang-router in front of the servers, started here or running already, and its list of workers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from slime_core.errors import ArgumentError
from slime_core.free_port import FreePort
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.keys import WRONG_KEY, Keys
from slime_engine_sglang.options import ROUTER, command_line
from slime_engine_sglang.process import ChildProcess, tail
from slime_engine_sglang.server import LOOPBACK

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments

SUCCESS = (200, 201, 202, 204)


class Router:
    """The router of a run.

    Args:
        args: the options of the run.
        log: the file that gets what the router prints.
        host: the address that it listens on.

    Attributes:
        starts: how often it was started here.
    """

    def __init__(self, args: SGLangRunArguments, log: Path, host: str = LOOPBACK) -> None:
        if args.sglang_router_ip and not args.sglang_router_port:
            raise ArgumentError("--sglang-router-ip needs --sglang-router-port.")
        self._args, self._log = args, log
        self.is_external = bool(args.sglang_router_ip)
        self._host = args.sglang_router_ip or host
        if args.sglang_router_port:
            self._port = args.sglang_router_port
        else:
            self._free = FreePort(host)
            self._port = self._free.number
        if not self.is_external:
            self._free_for_metrics = FreePort(host)
        self._child: ChildProcess | None = None
        self.starts = 0

    @property
    def url(self) -> str:
        """The router's address."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Start the router, unless it is external. It is not ready yet and knows no worker."""
        if not self.is_external:
            self.close()
            command = router_command(self._args, self._host, self._port, self._free_for_metrics.number)
            self._child = ChildProcess(command, self._log)
            self.starts += 1

    def status(self) -> int | None:
        """Return the exit status of a router that has ended; None while it runs or if it is external."""
        return None if self.is_external or self._child is None else self._child.status

    def log_tail(self) -> str:
        """Say where the log is, and how it ends."""
        return "It is external." if self.is_external else f"{self._log} ends with:\n{tail(self._log)}"

    def close(self) -> None:
        """End the router."""
        if self._child is not None:
            self._child.close()
            self._child = None

    async def answers(self, http: httpx.AsyncClient) -> bool:
        """Return whether the router answers."""
        try:
            return (await http.get(f"{self.url}/liveness", timeout=5)).status_code == 200
        except httpx.HTTPError:
            return False

    async def workers(self, http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
        """Return what the router knows about its workers, by their URL.

        Raises:
            SGLangError: it answers with an error.
            httpx.HTTPError: it does not answer.
        """
        answer = await http.get(f"{self.url}/workers", timeout=30)
        if answer.status_code != 200:
            raise SGLangError(f"The router at {self.url} answered {answer.status_code}: {answer.text[:300]}")
        return {worker["url"].rstrip("/"): worker for worker in answer.json()["workers"]}

    async def knows(self, http: httpx.AsyncClient, url: str) -> bool:
        """Return whether the router sends requests to this server."""
        try:
            worker = (await self.workers(http)).get(url)
        except httpx.HTTPError:
            return False
        return worker is not None and worker.get("is_healthy", True)

    async def add(self, http: httpx.AsyncClient, url: str) -> None:
        """Make this server, which answers already, a worker. It takes a moment until `knows` is true."""
        key = Keys.of(self._args).server
        await self._call(http, "POST", "/workers", {"url": url, **({"api_key": key} if key else {})})

    async def remove(self, http: httpx.AsyncClient, url: str) -> None:
        """Remove this server from the workers, so that it gets no more requests."""
        worker = (await self.workers(http)).get(url)
        if worker is not None:
            await self._call(http, "DELETE", f"/workers/{worker['id']}")

    async def _call(self, http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> None:
        answer = await http.request(method, self.url + path, json=body, timeout=30)
        if answer.status_code not in SUCCESS and answer.status_code != 404:
            raise SGLangError(
                f"The router at {self.url} answered {method} {path} with {answer.status_code}: {answer.text[:300]}"
                + (WRONG_KEY if answer.status_code in (401, 403) else "")
            )


def router_command(args: SGLangRunArguments, host: str, port: int, metrics_port: int) -> list[str]:
    """Return the command line of the router: slime's own options, then those that the user set.

    The engine repeats requests itself, since it knows whether they were aborted meanwhile. A server that dies must not
    bar the way to the one that is started in its place, so there is no circuit breaker either. The router's own health
    check asks for something that a server answers even while it is paused for new weights.
    """
    passed = command_line(ROUTER, vars(args))
    own = {
        "--host": host,
        "--port": str(port),
        "--prometheus-host": host,
        "--prometheus-port": str(metrics_port),
        "--request-timeout-secs": str(args.sglang_router_request_timeout_secs),
        "--policy": "cache_aware",
        "--worker-startup-check-interval": "1",
        "--health-check-endpoint": "/model_info",
        "--log-level": "warn",
    }
    kept = [word for flag, value in own.items() if flag not in passed for word in (flag, value)]
    switches = [flag for flag in ("--disable-retries", "--disable-circuit-breaker") if flag not in passed]
    return [sys.executable, "-m", "sglang_router.launch_router", *kept, *switches, *passed]
