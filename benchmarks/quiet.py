"""How much of the machine others use: a benchmark refuses to begin on a busy one, and marks what it measured when others computed.

The load average says little, as the benchmark's own last run is in it. What counts here is the share of all processors' time that was
used by anything but the measured process and its children, what a hypervisor took away included.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

MOST = 0.1
"""The share of the processors' time up to which a machine is quiet."""
LOOK_S, WAIT_S = 1.0, 30.0


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
