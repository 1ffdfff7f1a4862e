"""`Keys`: what servers and the router want to be shown with every request, where they were started with keys.

All connections of this package are made with it. SGLang takes `--api-key` for requests, and `--admin-api-key`, if there is one,
for calls that control a server; a router takes its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
from pydantic import SecretStr

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

_OF_REQUESTS = ("/generate",)
"""What is POSTed to a server and does not control it. What is asked with GET does not either."""

WRONG_KEY = " Give the key that it was started with: --sglang-api-key, --sglang-admin-api-key, --router-api-key."
"""What messages add where a server or the router refuses a request for its key."""


@dataclass(frozen=True)
class Keys(httpx.Auth):
    """Adds `Authorization: Bearer …`. It can be pickled.

    Attributes:
        server, admin, router: the values of `--sglang-api-key`, `--sglang-admin-api-key` and `--router-api-key`.
        router_url: the router's address; every other address is a server's.
    """

    server: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)
    router: str | None = field(default=None, repr=False)
    router_url: str = ""

    @classmethod
    def of(cls, args: RunArguments, router_url: str = "") -> Keys:
        """The keys of a run."""

        def given(name: str) -> str | None:
            value = getattr(args, name, None)  # SGLang's own and the router's exist if somebody set them
            return value.get_secret_value() if isinstance(value, SecretStr) else None

        return cls(given("sglang_api_key"), given("sglang_admin_api_key"), given("router_api_key"), router_url)

    def key(self, method: str, url: str) -> str | None:
        """The key for a request; None: none is needed."""
        if self.router_url and _place(url) == _place(self.router_url):
            return self.router or self.server
        controls = method != "GET" and not url.endswith(_OF_REQUESTS)
        return (controls and self.admin) or self.server

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """What httpx calls for each request."""
        if key := self.key(request.method, str(request.url)):
            request.headers["Authorization"] = f"Bearer {key}"
        yield request


def _place(url: str) -> tuple[str, int | None]:
    """The host and port of an address, which httpx writes in another way than it was given: in small letters, without the port 80."""
    parts = httpx.URL(url)
    return parts.host, parts.port


NO_KEYS = Keys()
