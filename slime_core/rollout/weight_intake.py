"""`WeightIntake`: one update of an engine's weights, whose weights arrive bucket by bucket. Made and called by `RolloutWorker`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slime_core.contracts.engine import InferenceEngine
from slime_core.errors import SlimeError

if TYPE_CHECKING:
    from torch import Tensor


class UpdateCutShort(SlimeError):
    """The engine reads weights that do not come any more."""


class WeightIntake:
    """Runs the engine's `update_weights` on a thread, and gives it what arrives. There is one bucket at a time.

    Args:
        version: of the weights.
    """

    def __init__(self, engine: InferenceEngine, version: int) -> None:
        self._engine, self._version = engine, version
        self._changed = threading.Condition()
        self._bucket: deque[tuple[str, Tensor]] | None = None
        self._handed_over = 0
        self._asks = self._ended = self._dropped = self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._update, name="weights", daemon=True)
        self._thread.start()

    def take(self, bucket: list[tuple[str, Tensor]]) -> bool:
        """Give the engine these weights, and return when it has read them: whether it goes on reading.

        Raises:
            Exception: what `update_weights` raised.
        """
        with self._changed:
            self._bucket = deque(bucket)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done or (self._asks and self._bucket is None))
            self._bucket = None
            self._handed_over += len(bucket)
        self._raise()
        return not self._done

    def end(self) -> None:
        """There are no more weights: return when the engine has them in use.

        Raises:
            Exception: what `update_weights` raised.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()

    def drop(self) -> None:
        """No more weights come, though these are not all: the engine's update fails. Returns when it has."""
        with self._changed:
            self._dropped = True
            self._changed.notify_all()
        self._thread.join()

    def _update(self) -> None:
        try:
            self._engine.update_weights(self._weights(), self._version)
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        while (bucket := self._next()) is not None:
            while bucket:
                yield bucket.popleft()  # so that nobody here keeps what the engine has read

    def _next(self) -> deque[tuple[str, Tensor]] | None:
        """Ask for the next bucket, and wait for it; None if there is none."""
        with self._changed:
            self._asks = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._bucket is not None or self._ended or self._dropped)
            self._asks = False
            if self._dropped:
                raise UpdateCutShort(
                    f"The weights of version {self._version} ended after {self._handed_over} of them: the trainer failed, or "
                    "the run was ended."
                )
            bucket, self._bucket = self._bucket, None
            return bucket

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
