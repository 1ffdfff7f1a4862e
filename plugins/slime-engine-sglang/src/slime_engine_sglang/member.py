"""`Member`: one server of a `Fleet`, and what it is asked in the engine's event loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx

from slime_core.errors import ArgumentError
from slime_engine_sglang import snapshot
from slime_engine_sglang.answers import as_version
from slime_engine_sglang.control import PATIENCE_S
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.server import MEMORY_OPTIONS

if TYPE_CHECKING:
    from slime_engine_sglang.remote import RemoteServer
    from slime_engine_sglang.server import Server

WEIGHTS = frozenset({"weights", "cuda_graph"})
MEMORY = WEIGHTS | {"kv_cache"}
"""What SGLang calls the parts of its memory: those that new weights need, and all."""


@dataclass(eq=False)
class Member:
    """One server.

    Attributes:
        url: where it answers.
        server: what starts and ends it; None if it is external.
        http: of the engine's event loop.
        state: "up" when it has the newest weights and the router sends it requests.
        failed_checks: health checks in a row.
        starts: failed ones in a row.
        away: the parts of its memory that it gave back.
    """

    url: str
    server: Server | RemoteServer | None
    http: httpx.AsyncClient
    state: Literal["starting", "up", "given up"] = "starting"
    failed_checks: int = 0
    starts: int = 0
    away: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        return f"the SGLang server {self.url}"

    def status(self) -> int | None:
        """See `Server.status`; one that is external never ends."""
        return None if self.server is None else self.server.status()

    def log_tail(self) -> str:
        """See `Server.log_tail`."""
        return "It is external." if self.server is None else self.server.log_tail()

    async def is_healthy(self, timeout: float = 30.0) -> bool:
        """Whether it generates a token, or is busy doing so."""
        try:
            return (await self.http.get(f"{self.url}/health", timeout=timeout)).status_code == 200
        except httpx.HTTPError:
            return False

    async def give_newest_weights(self, folder: Path) -> None:
        """Weights that were sent while the server was starting did not reach it.

        Args:
            folder: of the newest weights; see `snapshot`.
        """
        while True:
            has = as_version((await self._ask("GET", "/model_info")).get("weight_version"))
            path, version = snapshot.newest(folder) or (None, 0)
            if has == version or (path is None and has is not None):
                return
            if path is None:  # an external server that nobody has given a version
                await self._ask("POST", "/update_weight_version", {"new_version": "0", "abort_all_requests": False})
            else:
                body = {"model_path": str(path.resolve()), "weight_version": str(version)}
                await self._ask("POST", "/update_weights_from_disk", body)

    async def require_memory_saver(self) -> None:
        """Raise `ArgumentError` if it was not started with what `give_back_memory` needs. SGLang would not say so then."""
        started_with = await self._ask("GET", "/server_info")
        missing = [o for o in MEMORY_OPTIONS if not started_with.get(o.removeprefix("--").replace("-", "_"))]
        if missing:
            raise ArgumentError(
                f"--offload: {self.name} cannot give back its memory and take it again. Start it with "
                f"{' '.join(missing)} (which needs a GPU and the package torch_memory_saver), or leave --offload out."
            )

    async def give_back_memory(self) -> None:
        """Give back what it still has.

        SGLang dies if a request runs then, or begins before all of its memory is back, a health check included; so it is
        paused, whoever else may ask it.
        """
        if self.away != MEMORY:
            await self._ask("POST", "/pause_generation", {"mode": "retract"})
            await self._ask("POST", "/release_memory_occupation", {"tags": sorted(MEMORY - self.away)})
            self.away = MEMORY

    async def take_memory(self, parts: Iterable[str] = MEMORY) -> None:
        """Take these parts again, if they are away. The weights are what they were, and the cache is empty."""
        if wanted := self.away & set(parts):
            await self._ask("POST", "/resume_memory_occupation", {"tags": sorted(wanted)})
            self.away -= wanted
            if not self.away:
                await self._ask("POST", "/continue_generation", {})

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.http.request(method, self.url + path, json=body, timeout=PATIENCE_S)
        if answer.status_code != 200:
            raise SGLangError(f"{self.name} answered {path} with {answer.status_code}: {answer.text[:300]}")
        return answer.json()
