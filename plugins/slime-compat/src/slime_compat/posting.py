"""`post` and `get` of `slime.utils.http_utils`: to the run's own engine in SGLang's format, to anybody else over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from slime_compat.attributes import is_the_engine
from slime_compat.requests import is_batch, read_payload, single_payloads
from slime_compat.responses import response
from slime_core.contracts.engine import Generation
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError
from slime_core.plugins.clock import waiting
from slime_core.rollout.surroundings import Surroundings, current

logger = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds between two attempts to reach a server."""

_told: set[str] = set()  # the addresses that have been reported to be away
_numbers = itertools.count()


async def post(
    url: str, payload: Mapping[str, Any] | None, max_retries: int = 60, headers: Mapping[str, str] | None = None
) -> Any:
    """Send a payload as JSON, and return what is answered: parsed JSON, or text that is none.

    What goes to `http://{args.sglang_router_ip}:{args.sglang_router_port}/generate` is answered by the run's own engine,
    whichever it is, in SGLang's format. It is one of the requests of the sample whose generate function or reward asks: it is
    counted and aborted with the sample, and gets the newest weights.

    Args:
        max_retries: how often a server is tried, `PAUSE` seconds apart; the run's engine is asked once.
        headers: for a server.

    Raises:
        ArgumentError: the engine is asked for something that it does not do, or by nobody that generates or scores.
        httpx.HTTPError: a server cannot be reached or answers with an error, at the last attempt.
    """
    surroundings = current()
    if is_the_engine(url, surroundings.args if surroundings else None):
        if surroundings is None:
            raise ArgumentError(
                f"{url} stands for the run's engine, which can be asked by generate functions and rewards while they are "
                "called (and by what they start with asyncio); not by filters, other hooks or threads of your own."
            )
        return await surroundings.in_loop(_ask_engine(surroundings, urlsplit(url).path, payload or {}))
    return await _with_retries("POST", url, max_retries, json=dict(payload or {}), headers=headers)


async def get(url: str) -> Any:
    """Return what a server answers to a GET: parsed JSON, or text that is none.

    Raises:
        ArgumentError: the URL stands for the run's engine, which answers `post` alone.
        httpx.HTTPError: the server cannot be reached or answers with an error.
    """
    surroundings = current()
    if is_the_engine(url, surroundings.args if surroundings else None):
        raise ArgumentError(f"{url} stands for the run's engine, which answers post(…/generate) and nothing else.")
    return await _with_retries("GET", url, 1)


async def _ask_engine(surroundings: Surroundings, path: str, payload: Mapping[str, Any]) -> Any:
    """Answer a request to the run's engine. Runs in the event loop of the rollout."""
    if path.rstrip("/") == "/abort_request":
        rid = payload.get("rid")
        await surroundings.engine.abort(None if payload.get("abort_all") or rid is None else [str(rid)])
        return {}
    if path.rstrip("/") != "/generate":
        raise ArgumentError(
            f"A request went to {path} of the run's engine, which answers /generate (and /abort_request) alone: write it with "
            "text or input_ids and sampling_params."
        )
    if is_batch(payload):
        return list(await asyncio.gather(*(_generate(surroundings, single) for single in single_payloads(payload))))
    return await _generate(surroundings, payload)


async def _generate(surroundings: Surroundings, payload: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer, images = load_tokenizer(surroundings.args.hf_checkpoint), surroundings.images
    processor = processor_of(surroundings.args) if images or payload.get("image_data") else None
    request = read_payload(payload, tokenizer, surroundings.seed, images, processor)
    started = time.monotonic()
    if request.params["max_new_tokens"] == 0:
        generation = Generation([], [], "length")
    else:
        generation = await surroundings.engine.generate(
            request.input_ids, request.params, request.rid, images=request.images
        )
    rid = request.rid or f"slime-compat-{next(_numbers)}"
    return response(request, generation, tokenizer, rid, time.monotonic() - started)


async def _with_retries(method: str, url: str, attempts: int, **options: Any) -> Any:
    # Servers are neighbours: a proxy meant for the outside world is not asked.
    async with httpx.AsyncClient(timeout=None, trust_env=False, verify=_certificates()) as client:
        for left in reversed(range(attempts)):
            try:
                answer = await client.request(method, url, **options)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                if not left:
                    raise
                if url not in _told:
                    _told.add(url)
                    said = f": {error.response.text[:500]}" if isinstance(error, httpx.HTTPStatusError) else ""
                    logger.warning(
                        "%s cannot be asked (%s%s); it is tried up to %d more times, %g s apart.",
                        *(url, error or type(error).__name__, said, left, PAUSE),
                    )
                with waiting():
                    await asyncio.sleep(PAUSE)
                continue
            _told.discard(url)
            try:
                return json.loads(answer.content)
            except ValueError:
                return answer.text
    raise ArgumentError(f"max_retries for {url} is {attempts}; expected at least 1.")


@cache
def _certificates() -> ssl.SSLContext:
    """What servers are checked with; to make it takes longer than a request."""
    return ssl.create_default_context()
