"""How many threads the engine computes with where other processes use the processors too. The scheduler asks after each step.

The threads of a step wait for each other some hundred times in it. When one of them waits for a processor all others wait for it,
so that two threads can take three times as long as one. What is computed does not depend on their number, bit for bit.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

PERIOD_S, PAUSE_S = 0.05, 2.0
"""How long is looked at once at least, and the time without a look from which on what happened in it is not looked at."""
BUSY, CALM = 0.2, 0.05
"""The share of the time that one of this process's threads waited for a processor, above which there are too many of them, and
below which there may be more."""
PATIENCE, MOST_PATIENCE = 4, 64
"""How many calm looks come before more threads are tried; twice as many after a try that failed."""


class ThreadCount:
    """The number of threads that torch uses in the thread that makes this object: half as many after a busy time, down to one,
    and twice as many after some calm ones. Other threads keep theirs. Where the system does not tell how long threads wait
    (all but Linux) it stays as it is.
    """

    def __init__(self) -> None:
        self._most = self.count = torch.get_num_threads()
        self._since, self._waits = time.monotonic(), _waits()
        self._calm, self._patience, self._tried = 0, PATIENCE, False

    def adapt(self) -> None:
        """Look at the time since the last look, if that was long enough ago, and change the number if need be."""
        now = time.monotonic()
        if self._most == 1 or now - self._since < PERIOD_S:
            return
        waits, before, elapsed = _waits(), self._waits, now - self._since
        self._since, self._waits = now, waits
        if elapsed > PAUSE_S and not self._tried:
            return
        share = max((waited - before.get(number, waited) for number, waited in waits.items()), default=0.0) / elapsed
        if share > BUSY and self.count > 1:
            self._patience = min(2 * self._patience, MOST_PATIENCE) if self._tried else PATIENCE
            self._use(self.count // 2, tried=False)
        elif share < CALM:
            self._tried = False
            self._calm += 1
            if self.count < self._most and self._calm > self._patience:
                self._use(min(2 * self.count, self._most), tried=True)
        else:
            self._calm = 0

    def _use(self, count: int, tried: bool) -> None:
        self.count, self._calm, self._tried = count, 0, tried
        torch.set_num_threads(count)
        # It also sets the number for threads that have not computed yet; another thread sets that back.
        other = threading.Thread(target=torch.set_num_threads, args=(self._most,))
        other.start()
        other.join()


def _waits() -> dict[str, float]:
    """The seconds that each thread of this process has waited for a processor, by its number."""
    found: dict[str, float] = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            found[file.parent.name] = int(file.read_text().split()[1]) / 1e9
    return found
