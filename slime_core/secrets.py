"""Secrets are shown nowhere: passwords in URLs, and the values of options that are secrets.

    secret_from(value)    what `env:NAME` stands for, so that a secret need not be on the command line or in a recipe
    remember_secret(text) from now on this text is masked in this process
    masked(text)          the text without secrets, for whatever is printed or stored
    masked_data(value)    the same of every text in plain data

Called where arguments are read, and where they, errors and configurations are shown or written.
"""

from __future__ import annotations

import os
import re
from typing import Any

from slime_core.errors import ArgumentError

MASK = "***"
_IN_URL = re.compile(r"(?<=://)[^/?#@\s'\"]+@")
_IN_QUERY = re.compile(
    r"(?i)(?<=[?&])((?:api[-_]?key|key|token|access[-_]token|secret|password|sig|signature)=)[^&#\s'\"]+"
)
_LEAST = 4
"""Shorter texts are no secrets, and masking them would hide ordinary words."""
_known: set[str] = set()


def secret_from(value: Any, flag: str) -> Any:
    """Return the value of an option that is a secret; of `env:NAME` that of the environment variable.

    Raises:
        ArgumentError: the variable is not set.
    """
    if not (isinstance(value, str) and value.startswith("env:")):
        return value
    found = os.environ.get(value[4:])
    if not found:
        raise ArgumentError(f"{flag} is {value}, and the environment variable {value[4:]!r} is not set.")
    return found


def remember_secret(text: str) -> None:
    """Let `masked` mask this text, too."""
    if len(text) >= _LEAST:
        _known.add(text)


def masked(text: str) -> str:
    """Return the text with `***` in the place of secrets."""
    text = _IN_QUERY.sub(rf"\1{MASK}", _IN_URL.sub(f"{MASK}@", text))
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def masked_data(value: Any) -> Any:
    """Return plain data with every text masked."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_data(inner) for key, inner in value.items()}
    return [masked_data(inner) for inner in value] if isinstance(value, list) else value
