"""`slime serve`: a model behind OpenAI's interface."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.secrets import remember_secret, secret_from
from slime_serve.folders import opened
from slime_serve.options import Read, ServeOptions, read_command_line
from slime_serve.terminal import remark

DESCRIPTION = (
    "Serve a model as OpenAI does: /v1/chat/completions, /v1/completions, /v1/models, and /health. MODEL is a Hugging Face folder, the "
    "directory of a run, or a checkpoint iter_N of one. Ctrl-C ends it when running answers are finished."
)
KEY_VARIABLE = "SLIME_API_KEY"


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime serve MODEL …` until Ctrl-C or SIGTERM."""
    read = read_command_line(argv, "slime serve MODEL", DESCRIPTION, ServeOptions, plugins)
    if read.words:
        raise ArgumentError(f"What is {read.words[0]!r}? `slime serve` takes one MODEL, and options after it.")
    key = _key(read.own)
    from slime_serve.guard import is_loopback
    from slime_serve.server import listen

    if key is None and not is_loopback(read.own.host):
        raise ArgumentError(
            f"--host {read.own.host} lets other machines ask, so it needs --api-key env:NAME (or the variable {KEY_VARIABLE})."
        )
    with closing(listen(read.own.host, read.own.port)) as listening:
        return _serve(read, plugins, key, is_loopback(read.own.host), listening)


def _key(options: ServeOptions) -> str | None:
    """The key that requests must have."""
    given = options.api_key.get_secret_value() if options.api_key is not None else os.environ.get(KEY_VARIABLE)
    key = secret_from(given, "--api-key")
    if key is None:
        return None
    if len(key) < 8 or not key.isprintable() or not key.isascii() or " " in key:
        raise ArgumentError("--api-key: expected at least 8 characters of ASCII without spaces. It is not shown here.")
    remember_secret(key)
    return str(key)


def _serve(
    read: Read[ServeOptions], plugins: Plugins, key: str | None, loopback: bool, listening: socket.socket
) -> int:
    from slime_serve.app import Service, make_app
    from slime_serve.model import open_model
    from slime_serve.prompts import SENT
    from slime_serve.room import Room
    from slime_serve.server import Server

    _say_what_happens()
    with (
        opened(read.given, plugins, read.own.trust_remote_code) as folder,
        closing(open_model(read.args_for(folder), plugins)) as model,
    ):
        remark(f"loading {folder} …")
        name = read.own.served_model_name or read.given.rstrip("/") or str(Path(read.given))
        room = Room(read.own.max_waiting)
        variables = read.own.apply_chat_template_kwargs
        images = replace(SENT, fetch=read.own.fetch_images)
        service = Service(model, name, read.own.rollout_max_response_len, room, variables, images)

        def end() -> None:
            if not room.is_closed:
                waiting = f"waiting for {room.taken} answers, up to {read.own.shutdown_timeout} s" if room.taken else ""
                remark(f"shutting down {waiting}".rstrip())
            room.is_closed = True

        server = Server(make_app(service, key, loopback), read.own.shutdown_timeout, end)

        async def run() -> None:
            await model.warm_up()
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"serving {name!r} at http://{shown}:{port}/v1   (Ctrl-C ends)", flush=True)
            await server.serve(sockets=[listening])

        asyncio.run(run())
    return 0


def _say_what_happens() -> None:
    """Let the log of requests go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("slime_serve")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
