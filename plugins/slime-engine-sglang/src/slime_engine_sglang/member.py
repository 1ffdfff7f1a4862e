"""`Member`: one server of a `Fleet`, and the calls that the engine's event loop makes to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx

from slime_core.errors import ArgumentError
from slime_engine_sglang import snapshot
from slime_engine_sglang.answers import UNUSABLE, parse_version
from slime_engine_sglang.control import CONTROL_TIMEOUT_S
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.keys import WRONG_KEY
from slime_engine_sglang.server import MEMORY_OPTIONS

if TYPE_CHECKING:
    from slime_engine_sglang.remote import RemoteServer
    from slime_engine_sglang.server import Server

WEIGHTS = frozenset({"weights", "cuda_graph"})
"""The parts of a server's memory that new weights need, by SGLang's names."""
ALL_PARTS = WEIGHTS | {"kv_cache"}
"""All parts of a server's memory, by SGLang's names."""


@dataclass(eq=False)
class Member:
    """One server of a fleet.

    Attributes:
        url: the server's address.
        server: the object that starts and ends it; None if it is external.
        http: the connections of the engine's event loop.
        state: "up" when it has the newest weights and was made known to the router.
        known: the router that runs now sends it requests.
        failed_checks: how many health checks in a row it failed.
        failed_starts: how many attempts in a row to start it again failed.
        away: the parts of its memory that it gave back.
        context: the longest prompt and response together that it takes, in tokens; None: it does not say.
        ranks: the number of its tensor-parallel ranks; None: it does not say.
        stages: the number of its pipeline stages.
    """

    url: str
    server: Server | RemoteServer | None
    http: httpx.AsyncClient
    state: Literal["starting", "up", "given up"] = "starting"
    known: bool = False
    failed_checks: int = 0
    failed_starts: int = 0
    away: frozenset[str] = field(default_factory=frozenset)
    context: int | None = None
    ranks: int | None = None
    stages: int = 1

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the SGLang server {self.url}"

    def status(self) -> int | None:
        """Return the exit status of a server that has ended; None while it runs or if it is external."""
        return None if self.server is None else self.server.status()

    def log_tail(self) -> str:
        """Say where the log is, and how it ends."""
        return "It is external." if self.server is None else self.server.log_tail()

    async def is_healthy(self, timeout: float = 30.0) -> bool:
        """Return whether it generates a token, or is busy generating."""
        try:
            return (await self.http.get(f"{self.url}/health", timeout=timeout)).status_code == 200
        except httpx.HTTPError:
            return False

    async def load_newest_weights(self, folder: Path) -> None:
        """Load the newest weights, unless it has them: those that were sent while it was starting did not reach it.

        Args:
            folder: the folder of `snapshot` with the newest weights.
        """
        while True:
            has = parse_version((await self._call("GET", "/model_info")).get("weight_version"))
            path, version = snapshot.newest(folder) or (None, 0)
            if has == version or (path is None and has is not None):
                return
            if path is None:  # an external server that nobody has given a version
                await self._call("POST", "/update_weight_version", {"new_version": "0", "abort_all_requests": False})
            else:
                body = {"model_path": str(path.resolve()), "weight_version": str(version)}
                await self._call("POST", "/update_weights_from_disk", body)

    async def learn(self) -> None:
        """Ask for `context`, which its memory for keys and values bounds, and for the options that somebody else may have given it."""
        with contextlib.suppress(SGLangError):  # a version that does not tell
            told = await self._call("GET", "/server_info")
            longest_prompt = told.get("max_req_input_len")
            self.context = int(longest_prompt) + UNUSABLE if longest_prompt else None
            self.ranks, self.stages = told.get("tp_size"), told.get("pp_size") or 1

    async def require_memory_saver(self) -> None:
        """Raise `ArgumentError` if it was started without what `give_back_memory` needs. SGLang would not say so
        later."""
        started_with = await self._call("GET", "/server_info")
        missing = [o for o in MEMORY_OPTIONS if not started_with.get(o.removeprefix("--").replace("-", "_"))]
        if missing:
            raise ArgumentError(
                f"--offload: {self.name} cannot give back its memory and take it again. Start it with "
                f"{' '.join(missing)} (which needs a GPU and the package torch_memory_saver), or leave --offload out."
            )

    async def give_back_memory(self) -> None:
        """Give back the parts of its memory that it still has.

        SGLang dies if a request runs then, or begins before all of its memory is back, a health check included. So it
        is paused, whoever else may send it requests.
        """
        if self.away != ALL_PARTS:
            await self._call("POST", "/pause_generation", {"mode": "retract"})
            await self._call("POST", "/release_memory_occupation", {"tags": sorted(ALL_PARTS - self.away)})
            self.away = ALL_PARTS

    async def take_memory(self, parts: Iterable[str] = ALL_PARTS) -> None:
        """Take these parts again, if they are away. The weights are what they were, and the cache is empty."""
        if wanted := self.away & set(parts):
            await self._call("POST", "/resume_memory_occupation", {"tags": sorted(wanted)})
            self.away -= wanted
            if not self.away:
                await self._call("POST", "/continue_generation", {})

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON of the response.

        Raises:
            SGLangError: the server refuses.
            httpx.HTTPError: it does not answer.
        """
        answer = await self.http.request(method, self.url + path, json=body, timeout=CONTROL_TIMEOUT_S)
        if answer.status_code != 200:
            said = f"{self.name} answered {path} with {answer.status_code}: {answer.text[:300]}"
            raise SGLangError(said + (WRONG_KEY if answer.status_code in (401, 403) else ""))
        return answer.json()
