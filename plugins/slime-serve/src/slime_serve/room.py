"""`Room`: how many answers there may be at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slime_serve.refusals import Refusal, wrong


class Room:
    """Counts the answers that are generated or wait for it.

    Args:
        limit: of both together.

    Attributes:
        taken: how many there are.
        is_closed: the server ends, and takes no more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken, self.is_closed = limit, 0, False

    @contextmanager
    def take(self, answers: int) -> Iterator[None]:
        """Take room for the answers of a request until the block ends.

        Raises:
            Refusal: there is none, now or ever.
        """
        if self.is_closed:
            raise Refusal(503, "The server is shutting down.", code="shutting_down", headers={"Connection": "close"})
        if answers > self.limit:
            raise wrong(
                f"The request asks for {answers} answers; this server takes {self.limit} at a time (--max-waiting).",
                "n",
            )
        if self.taken + answers > self.limit:
            raise Refusal(
                429,
                f"The server has {self.taken} answers to give and takes {self.limit} at a time (--max-waiting). Try again later.",
                code="server_busy",
                headers={"Retry-After": "1"},
            )
        self.taken += answers
        try:
            yield
        finally:
            self.taken -= answers
