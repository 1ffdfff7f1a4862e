"""Servers and a router that were started with keys: every request shows the right one. They are scripted, and demand keys as SGLang
0.5.23 and its router do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted_sglang
import sglang_cases as cases
import torch
from pydantic import SecretStr

from slime_core.arguments.resolve import remember_secrets
from slime_core.secrets import masked
from slime_engine_sglang import launcher
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.keys import Keys
from slime_engine_sglang.router import router_command
from slime_engine_sglang.server import server_command

REFUSED: list[str] = []


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`serve(state, key, admin)`: the port of a program that answers so and demands these keys."""
    monkeypatch.setattr(launcher, "POLL_S", 0.01)
    monkeypatch.setattr(
        "slime_engine_sglang.engine.command_line", lambda family, values: []
    )  # which asks SGLang itself
    REFUSED.clear()
    started = []

    def start(state: Any, key: str | None, admin: str | None = None) -> int:
        class Demanding(scripted_sglang.Answering):
            answer = state.answer

            def _handle(self) -> None:
                normal = self.command == "GET" or self.path == "/generate" or isinstance(state, scripted_sglang.Router)
                wanted = key if normal else admin or key
                if self.path in ("/health", "/liveness") or wanted in (None, self._shown()):
                    super()._handle()
                    return
                REFUSED.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                said = b'{"error":"Unauthorized"}'
                self.send_response(401)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def _shown(self) -> str:
                return str(self.headers.get("Authorization")).removeprefix("Bearer ")

            do_GET = do_POST = do_DELETE = _handle

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Demanding))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return started[-1].server_port

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def engine_with(
    serve: Callable[..., int], folder: Path, model: Path, demands: Keys, shows: dict[str, str]
) -> SGLangEngine:
    router = serve(scripted_sglang.Router(), demands.router)
    servers = [
        serve(scripted_sglang.Server(str(folder / f"asked-{number}"), "0", []), demands.server, demands.admin)
        for number in range(2)
    ]
    args = cases.options(
        hf_checkpoint=str(model),
        run_dir=str(folder),
        rollout_external_engine_addrs=[f"127.0.0.1:{port}" for port in servers],
        sglang_router_ip="127.0.0.1",
        sglang_router_port=router,
        update_weight_transport="tensor",
        **{name: SecretStr(key) for name, key in shows.items()},
    )
    remember_secrets(args)
    return SGLangEngine(args)


@pytest.mark.parametrize(
    ("demands", "shows"),
    [
        (Keys("key-of-servers"), {"sglang_api_key": "key-of-servers"}),
        (Keys("key-of-servers", None, "key-of-servers"), {"sglang_api_key": "key-of-servers"}),
        (Keys(None, "key-of-admins"), {"sglang_admin_api_key": "key-of-admins"}),
        (
            Keys("key-of-servers", "key-of-admins", "key-of-router"),
            {
                "sglang_api_key": "key-of-servers",
                "sglang_admin_api_key": "key-of-admins",
                "router_api_key": "key-of-router",
            },
        ),
    ],
)
def test_every_request_shows_the_key_that_is_demanded(serve, tmp_path, tiny_model, demands, shows) -> None:
    engine = engine_with(serve, tmp_path, tiny_model, demands, shows)
    try:
        assert asyncio.run(engine.generate([1, 2], {"max_new_tokens": 1})).weight_versions == [0]
        engine.update_weights(iter([("w", torch.arange(3.0))]), 1)
        assert asyncio.run(engine.generate([1, 2], {"max_new_tokens": 1})).weight_versions == [1]
        asyncio.run(engine.abort())
    finally:
        engine.close()
    for number in range(2):
        asked = {json.loads(line)[0] for line in (tmp_path / f"asked-{number}").read_text().splitlines()}
        assert {"/generate", "/update_weights_from_tensor", "/pause_generation"} <= asked
    assert REFUSED == []


@pytest.mark.parametrize("shows", [{}, {"sglang_api_key": "another-key"}])
def test_a_refused_key_is_named_as_the_cause_and_not_shown(serve, tmp_path, tiny_model, shows) -> None:
    engine = engine_with(serve, tmp_path, tiny_model, Keys("key-of-servers"), shows)
    try:
        with pytest.raises(
            SGLangError, match=r"/model_info with 401: .*Give the key that it was started with: --sglang-api-key"
        ):
            asyncio.run(engine.generate([1, 2], {"max_new_tokens": 1}))
    finally:
        engine.close()
    assert set(REFUSED) == {"/model_info"}


def test_servers_are_started_with_the_key_which_no_text_shows(tmp_path, tiny_model, monkeypatch) -> None:
    monkeypatch.setenv("KEY_OF_SERVERS", "key-of-servers")
    args = cases.arguments(tiny_model, tmp_path, "--sglang-api-key", "env:KEY_OF_SERVERS")
    command = server_command(args, 0, "folder", 0, "127.0.0.1", 5000, on_gpu=False)
    assert command[command.index("--api-key") + 1] == "key-of-servers"
    assert "--api-key" not in router_command(args, "127.0.0.1", 5001, 5002)
    keys = Keys.of(args)
    assert keys.server == "key-of-servers"
    assert "key-of-servers" not in repr(keys) + masked(" ".join(command)) + str(vars(args))


@pytest.mark.parametrize("given", ["http://Router.Example:80", "http://router.example", "http://router.example:80"])
def test_the_router_is_known_by_its_address_however_that_is_written(given: str) -> None:
    keys = Keys("key-of-servers", None, "key-of-router", given)
    for path, key in (("/generate", "key-of-router"), ("/workers", "key-of-router")):
        request = next(keys.auth_flow(httpx.Request("POST", given + path)))
        assert request.headers["Authorization"] == f"Bearer {key}"
    server = next(keys.auth_flow(httpx.Request("POST", "http://router.example:8000/generate")))
    assert server.headers["Authorization"] == "Bearer key-of-servers"
