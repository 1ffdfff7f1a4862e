"""The reward `remote_rm`: a service scores the response."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins.calls import policies
from slime_core.sample import Sample
from slime_rewards.arguments import RemoteRunArguments

# Reward services are neighbours: a proxy meant for the outside world is not asked.
_OPENER = build_opener(ProxyHandler({}))


def remote_rm(args: RemoteRunArguments, sample: Sample) -> float | dict[str, Any]:
    """POST `{"prompt", "response", "label"}` as JSON to `--rm-url`; the answer is a number, or an object of which
    `--reward-key` names one.

    A plain function: each call runs on a thread of its own, and waits no longer than the failure policy's timeout.

    Raises:
        ArgumentError: `--rm-url` is missing or no URL.
        PluginError: no connection, a status other than 2xx, or an answer that is no number; the failure policy decides
            whether to try again.
    """
    url = args.rm_url
    if not url or urlsplit(url).scheme not in ("http", "https"):
        raise ArgumentError(f"--rm-type remote_rm needs --rm-url http://host:port/path; given was {url!r}.")
    body = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=policies(args.failure_policy)["reward"].timeout) as answer:
            content = answer.read()
    except HTTPError as error:
        with error:
            text = error.read(300).decode(errors="replace").strip()
        raise PluginError(f"{url} answered with status {error.code}: {text or error.reason}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise PluginError(f"{url} cannot be asked for a reward: {reason}") from None
    return _number(url, content)


def _number(url: str, content: bytes) -> float | dict[str, Any]:
    """Read the reward that a service answered with.

    Raises:
        PluginError: it is neither a JSON number nor an object.
    """
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if isinstance(value, dict) and value:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = content[:200].decode(errors="replace")
    raise PluginError(f"{url} answered {text!r}; expected a JSON number, or an object with numbers in it.")
