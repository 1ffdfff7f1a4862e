"""What this process holds in memory, as the kernel counts it. Called by processes that benchmarks measure; imports nothing of slime."""

from __future__ import annotations

from pathlib import Path


def largest_mib() -> float:
    """The largest resident memory since this program was started (VmHWM)."""
    return _status("VmHWM")


def resident_mib() -> float:
    """The resident memory now (VmRSS)."""
    return _status("VmRSS")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(largest_mib())
