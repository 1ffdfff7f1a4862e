"""The reward `remote_rm`: a service scores the response."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener
from weakref import WeakKeyDictionary

from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins.calls import policies
from slime_core.plugins.clock import in_thread, waiting
from slime_core.sample import Sample
from slime_core.secrets import masked
from slime_rewards.arguments import RemoteRunArguments

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Requests that are made at the same time; others wait for their turn."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts to reach a service that is away."""
WORTH_TELLING = 1.0
"""The pause before which a service is reported to be away; a connection that is reset now and then is not."""
AWAY = (429, 502, 503, 504)
"""What services and the proxies before them answer while they are overloaded, or start."""

MAX_ANSWER_BYTES = 1 << 20
"""Bytes that an answer may have."""


class _NoRedirects(HTTPRedirectHandler):
    """An answer that names another address is an error: prompts and passwords go where `--rm-url` says."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Name no other request, which makes the answer an `HTTPError`."""


# Reward services are neighbours: a proxy meant for the outside world is not asked.
_OPENER = build_opener(ProxyHandler({}), _NoRedirects())
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_away: set[str] = set()  # the services that have been reported to be away


async def remote_rm(args: RemoteRunArguments, sample: Sample) -> float | dict[str, Any]:
    """POST `{"prompt", "response", "label"}` as JSON to `--rm-url`; the answer is a number, or an object of which
    `--reward-key` names one.

    At most `AT_ONCE` requests are made at the same time. A service that is away, because it is being restarted, is waited for
    up to `--rm-patience` seconds. Neither counts as time that the reward takes: the failure policy's timeout is for answers.

    Raises:
        ArgumentError: `--rm-url` is missing or no URL.
        PluginError: the service stays away, a status other than 2xx, or an answer that is no number; the failure policy
            decides whether to try again.
    """
    given = require_url(args.rm_url)
    url, headers = _without_password(given)
    body = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    timeout = policies(args.failure_policy)["reward"].timeout
    given_up, pause = time.monotonic() + args.rm_patience, FIRST_PAUSE
    while True:
        try:
            return _number(url, await _in_turn(request, timeout))
        except _Away as error:
            left = given_up - time.monotonic()
            if left <= 0:
                raise PluginError(f"{url} cannot be asked for a reward: {error}") from None
            if pause >= WORTH_TELLING and url not in _away:
                _away.add(url)
                logger.warning(
                    "%s cannot be asked for a reward (%s); it is waited for, up to %g s (--rm-patience).",
                    *(url, error, args.rm_patience),
                )
            with waiting():
                await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)


class _Away(Exception):
    """The service could not be asked."""


async def _in_turn(request: Request, timeout: float | None) -> bytes:
    """Return the body of the answer, asked for on a thread of its own once there are fewer than `AT_ONCE`."""
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE))
    with waiting():
        await turns.acquire()
    asked = in_thread(_ask, (request, timeout), {})
    try:
        return await asyncio.wrap_future(asked)
    finally:
        turns.release()


def _ask(request: Request, timeout: float | None) -> bytes:
    """Return the body of the answer. Raises `_Away` or PluginError."""
    url = request.full_url
    try:
        with _OPENER.open(request, timeout=timeout) as answer:
            content: bytes = answer.read(MAX_ANSWER_BYTES + 1)
    except HTTPError as error:
        with error:
            text = error.read(300).decode(errors="replace").strip() or error.reason
        if 300 <= error.code < 400:
            there = masked(str(error.headers.get("Location", "another address")))
            raise PluginError(
                f"{url} answered with status {error.code} and sends to {there}; redirects are not followed. Give the address "
                "of the service itself with --rm-url."
            ) from None
        if error.code in AWAY:
            raise _Away(f"it answered with status {error.code}: {text}") from None
        raise PluginError(f"{url} answered with status {error.code}: {text}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise PluginError(f"{url} did not answer within {timeout:g} s.") from None
        raise _Away(str(reason) or type(reason).__name__) from None
    _away.discard(url)
    if len(content) > MAX_ANSWER_BYTES:
        raise PluginError(
            f"{url} answered with more than {MAX_ANSWER_BYTES} bytes; expected a JSON number or a small object."
        )
    return content


def require_url(url: str | None) -> str:
    """Return `--rm-url`.

    Raises:
        ArgumentError: it is missing or no URL.
    """
    try:
        if url and urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname and urlsplit(url).port != 0:
            return url
    except ValueError:  # such as a port that is no number
        pass
    shown = masked(repr(url))
    raise ArgumentError(f"--rm-type remote_rm needs --rm-url http://host:port/path; given was {shown}.")


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without user and password, and the headers that say them."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, {}
    user, _, host = parts.netloc.rpartition("@")
    word = base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {word}"}


def _number(url: str, content: bytes) -> float | dict[str, Any]:
    """Read the reward that a service answered with.

    Raises:
        PluginError: it is neither a JSON number nor an object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and value:
        return value
    if isinstance(value, (int, float)) and abs(value) < 1e300:
        return float(value)
    text = content[:200].decode(errors="replace")
    raise PluginError(f"{url} answered {text!r}; expected a JSON number, or an object with numbers in it.")
