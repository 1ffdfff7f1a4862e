"""How much of the machine others use: a benchmark refuses to begin on a busy one, and marks what it measured when others computed.

The load average says little, as the benchmark's own last run is in it. What counts here is the share of all processors' time that was
used by anything but the measured process and its children, what a hypervisor took away included.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

T = TypeVar("T")

MOST = 0.1
"""The share of the processors' time up to which a machine is quiet."""
LOOK_S, WAIT_S, SAMPLE_S = 1.0, 30.0, 0.5
FAMILY = "SLIME_BENCHMARK_FAMILY"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--under-load`."""
    text = f"measure although others use more than {100 * MOST:.0f} %% of the processors; the figures are marked"
    parser.add_argument("--under-load", action="store_true", help=text)


def require_quiet(under_load: bool) -> None:
    """Wait up to half a minute for others to end, before a run is measured.

    Raises:
        SystemExit: others go on using the processors, and `under_load` is not set.
    """
    last = time.monotonic() + WAIT_S
    while (share := share_now()) > MOST and not under_load:
        if time.monotonic() > last:
            raise SystemExit(
                f"Others use {100 * share:.0f} % of this machine's processors; figures taken now would not be this program's. "
                "End them, or measure all the same with --under-load, which marks the figures."
            )
        print(f"waiting: others use {100 * share:.0f} % of the processors", file=sys.stderr, flush=True)


def share_now() -> float:
    """The share of all processors' time that is used while this process sleeps for a second; 0 where the system does not tell."""
    watch = Watch()
    time.sleep(LOOK_S)
    return watch.others(0.0)


class Watch:
    """Looks at the processors from its making on."""

    def __init__(self) -> None:
        self._started, self._used = time.monotonic(), _used()

    def others(self, own: float) -> float:
        """The share of all processors' time since then that others used.

        Args:
            own: seconds of processor time that the measured process and its children used.
        """
        available = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return max(0.0, _used() - self._used - own) / available


def beside_others(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the share of all processors' time that others used meanwhile than this process and the children that
    it waited for."""
    watch, before = Watch(), _own()
    done = work()
    return done, watch.others(_own() - before)


def _own() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class Family:
    """Counts the processor time and memory of processes and of all that these start, wherever they belong to: workers of Ray are
    nobody's children, and whoever ends them need not wait for them. They are known by a variable of their environment.

    Attributes:
        mark: what to add to the environment of those to count.
        peak_gib: the most that was resident at one time: of all what each has for itself, and what the one that shares most shares.
    """

    def __init__(self) -> None:
        self.mark = {FAMILY: uuid4().hex}
        self.peak_gib = 0.0
        self._seconds: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._watch = Watch()

    def __enter__(self) -> Family:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def others(self) -> float:
        """The share of all processors' time that others have used, for after the end. What a process used in its last half
        second is taken for that of others."""
        return self._watch.others(sum(self._seconds.values()))

    def _look(self) -> None:
        wanted = f"{FAMILY}={self.mark[FAMILY]}".encode()
        while not self._ended.wait(SAMPLE_S):
            own, shared = 0, [0]
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it has ended
                    number = int(folder.name)
                    if number in self._seconds or wanted in (folder / "environ").read_bytes():
                        used = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
                        self._seconds[number] = sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
                        _, resident, common = map(int, (folder / "statm").read_text().split()[:3])
                        own += resident - common
                        shared.append(common)
            self.peak_gib = max(self.peak_gib, (own + max(shared)) * os.sysconf("SC_PAGE_SIZE") / 2**30)


def sentence(shares: list[float]) -> str:
    """What a report says of the shares of others during its runs."""
    told = f"Others used {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the processors during the runs."
    return f"**Taken under load.** {told}" if max(shares) > MOST else told


def _used() -> float:
    """The seconds that the processors have worked since the machine started, or were taken away by a hypervisor."""
    file = Path("/proc/stat")
    if not file.exists():
        return 0.0
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, file.read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
