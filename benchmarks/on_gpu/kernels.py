"""What ran on the device while something was done: the kernels, the share of the time without any, and what waited for the device."""

from __future__ import annotations

import gzip
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu.machine import Machine

TRACE_MIB = 12
"""A trace file that is larger, compressed, keeps what ran on the device alone, and of that only the beginning."""


@dataclass
class Recorded:
    """What ran in a while.

    Attributes:
        seconds: how long it was.
        spans: (begin, end, name) of everything that ran on the device, in nanoseconds; on a CPU of the operations.
    """

    seconds: float = 0.0
    spans: list[tuple[int, int, str]] = field(default_factory=list)

    def busy(self) -> float:
        """Seconds in which at least one of them ran."""
        return sum(end - begin for begin, end in self._joined()) * 1e-9

    def idle_share(self) -> float:
        """Of the whole time, in which none ran."""
        return max(0.0, 1 - self.busy() / self.seconds) if self.seconds else 0.0

    def longest_gaps(self, count: int = 5) -> list[float]:
        """Milliseconds of the longest gaps between two that ran."""
        joined = list(self._joined())
        gaps = (b[0] - a[1] for a, b in pairwise(joined))
        return [round(gap * 1e-6, 3) for gap in sorted(gaps, reverse=True)[:count]]

    def table(self, count: int = 25) -> list[dict[str, Any]]:
        """Those that took most time: name, calls, milliseconds, share of the busy time."""
        took: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for begin, end, name in self.spans:
            took[name] += end - begin
            calls[name] += 1
        total = sum(took.values()) or 1
        return [
            {"name": name[:120], "calls": calls[name], "ms": round(own * 1e-6, 3), "share": round(own / total, 4)}
            for name, own in took.most_common(count)
        ]

    def _joined(self) -> Iterator[tuple[int, int]]:
        begin = end = None
        for first, last, _ in sorted(self.spans):
            if end is None or begin is None:
                begin, end = first, last
            elif first > end:
                yield begin, end
                begin, end = first, last
            else:
                end = max(end, last)
        if begin is not None and end is not None:
            yield begin, end


class Recorder:
    """Records between `start` and `stop` what runs on the device, whichever thread starts it."""

    def __init__(self, machine: Machine, host: bool = False) -> None:
        """
        Args:
            host: record the operations of the host too, which a trace shows and which take time.
        """
        from torch.profiler import ProfilerActivity, profile

        self._machine = machine
        activities = [ProfilerActivity.CUDA] if machine.on_gpu else [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CPU] * (host and machine.on_gpu)
        self._profile: Any = profile(activities=activities, acc_events=True)  # else it warns of a second cycle

    def start(self) -> None:
        """Begin, when the device has done everything so far."""
        self._machine.sync()
        self._profile.start()
        self._started = time.perf_counter()

    def stop(self, trace: Path | None = None) -> Recorded:
        """End, when the device has done everything.

        Args:
            trace: write a trace for a browser here, compressed.
        """
        self._machine.sync()
        seconds = time.perf_counter() - self._started
        self._profile.stop()
        wanted = torch.autograd.DeviceType.CUDA if self._machine.on_gpu else torch.autograd.DeviceType.CPU
        spans = [
            (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
            for event in self._profile.profiler.kineto_results.events()
            if event.device_type() == wanted and event.duration_ns() > 0 and not event.name().startswith("ProfilerStep")
        ]
        if trace is not None:
            self._write(trace)
        return Recorded(seconds, spans)

    def _write(self, trace: Path) -> None:
        plain = self._machine.scratch / "trace.json"
        self._profile.export_chrome_trace(str(plain))
        trace.write_bytes(gzip.compress(plain.read_bytes(), 6))
        if trace.stat().st_size > TRACE_MIB * 2**20:
            content = json.loads(plain.read_text())
            kept = [e for e in content["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
            size = len(kept)
            while trace.stat().st_size > TRACE_MIB * 2**20:
                text = json.dumps({**content, "traceEvents": kept[:size]})
                trace.write_bytes(gzip.compress(text.encode(), 6))
                size //= 2
        plain.unlink()


@contextmanager
def waits_counted(machine: Machine) -> Iterator[Counter[str]]:
    """Count the places at which the host waits for the device: "FILE:LINE" of the Python code. Nothing on a CPU."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if machine.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if machine.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            place = Path(warning.filename)
            found["/".join(place.parts[-2:]) + f":{warning.lineno}"] += 1


def recorded(machine: Machine, work: Callable[[], Any], trace: Path | None = None) -> Recorded:
    """Do something, and return what ran."""
    recorder = Recorder(machine, host=trace is not None)
    recorder.start()
    work()
    return recorder.stop(trace)
