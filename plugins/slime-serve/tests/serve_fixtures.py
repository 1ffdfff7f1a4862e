"""One server for all tests of a file, in a thread of the test process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI

from slime_core.plugins import Plugins
from slime_serve.app import Service, make_app
from slime_serve.model import ServedModel, open_model
from slime_serve.options import ServeOptions, read_command_line
from slime_serve.room import Room
from slime_serve.server import Server, listen

NAME = "tiny"


@dataclass
class Served:
    """A running server.

    Attributes:
        url: without the path.
        http: a client for requests as they stand.
        openai: the official client.
    """

    url: str
    service: Service
    http: httpx.Client
    openai: OpenAI

    @property
    def model(self) -> ServedModel:
        return self.service.model

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Ask, with the name of the model filled in."""
        given = {"model": NAME, **body} if isinstance(body, dict) else body
        return self.http.post(path, **({"json": given} if body is not None else {}), **more)


@contextmanager
def serving(folder: Path, *flags: str, key: str | None = None, most: int = 64, patience: int = 5) -> Iterator[Served]:
    """A server for the model in a folder, until the block ends."""
    plugins = Plugins()
    read = read_command_line([str(folder), *flags], "slime serve", "", ServeOptions, plugins)
    model = open_model(read.args, plugins)
    service = Service(model, NAME, 64, Room(most))
    listening = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def end() -> None:
        service.room.is_closed = True

    server = Server(make_app(service, key, loopback=True), patience, end)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            client = OpenAI(
                base_url=f"{url}/v1",
                api_key=key or "none",
                max_retries=0,
                http_client=DefaultHttpxClient(trust_env=False),
            )
            with client:
                yield Served(url, service, http, client)
    finally:
        server.handle_exit(2, None)
        thread.join(30)
        model.close()
        listening.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Served]:
    """A server for a tiny random model."""
    with serving(tiny_model) as running:
        yield running
