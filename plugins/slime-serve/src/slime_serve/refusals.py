"""`Refusal`: an error in OpenAI's shape. Whatever is wrong with a request ends in one of these."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: the status of HTTP.
        message: what was given, what was expected.
        param: which parameter of the request is wrong, if it is one.
        code: a word for programs, such as "model_not_found".
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """What is sent back."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """The refusal of a request that is wrong in itself."""
    return Refusal(400, message, param, code)
