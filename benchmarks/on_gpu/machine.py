"""The device of `benchmarks.gpu`: its name, its peaks, and what it reaches of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import versions

PEAK_TFLOPS = {"H200": 989, "H100": 989, "H20": 148, "B200": 2250, "A100": 312, "A800": 312, "L40S": 362, "4090": 165}
"""Dense bfloat16, from the makers' data sheets, by a part of the device's name. The SXM model where there are several."""
PACKAGES = ("slime-core", "slime-torch", "slime-engine-local", "slime-fp8", "torch", "transformers", "triton", "numpy")


def peak_of(name: str) -> float | None:
    """TFLOP/s in bfloat16 of a device with this name; None if it is not known. The longest part of the name counts."""
    known = sorted((part for part in PEAK_TFLOPS if part in name), key=len)
    return float(PEAK_TFLOPS[known[-1]]) if known else None


def device_and_peak(peak: float | None, without_gpu: bool) -> tuple[str, float | None]:
    """(the device's name, its peak in TFLOP/s).

    Raises:
        SystemExit: there is no GPU, and one is wanted.
    """
    if without_gpu:
        return "CPU", peak
    require_gpu()
    name = torch.cuda.get_device_name()
    return name, peak or peak_of(name)


def require_gpu() -> None:
    """Raises:
    SystemExit: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs a CUDA device, and torch sees none: install torch for CUDA and run it on a machine with a "
            "GPU. --without-gpu does the same on the CPU, with tiny models."
        )


@dataclass
class Machine:
    """Where jobs run, and what they need to know of it.

    Attributes:
        on_gpu: else everything is tiny, on the CPU.
        out: results are written here.
        scratch: for checkpoints; goes with the process.
        options: further words for every trainer and run.
    """

    on_gpu: bool
    out: Path
    scratch: Path
    peak_tflops: float | None = None
    options: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where models lie."""
        return torch.device("cuda" if self.on_gpu else "cpu")

    @property
    def peak(self) -> float | None:
        """FLOP/s in bfloat16 of the data sheet."""
        tflops = device_and_peak(self.peak_tflops, not self.on_gpu)[1]
        return tflops and 1e12 * tflops

    @property
    def memory(self) -> float:
        """Bytes of the device that are free for this process."""
        if not self.on_gpu:
            return float("inf")
        free, _ = torch.cuda.mem_get_info()
        return float(free + torch.cuda.memory_reserved())

    def sync(self) -> None:
        """Wait until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """How long work takes, with all that it starts on the device."""
        self.sync()
        started = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - started

    def median_seconds(self, work: Callable[[], Any], repeats: int = 10) -> float:
        """The median over several times, after two to warm up."""
        return statistics.median([self.seconds(work) for _ in range(repeats + 2)][2:])

    def allocated(self) -> int:
        """Bytes of the device that tensors take now."""
        return torch.cuda.memory_allocated() if self.on_gpu else 0

    def reserved(self) -> int:
        """Bytes of the device that torch has taken, for tensors or for later."""
        return torch.cuda.memory_reserved() if self.on_gpu else 0

    def what_is_allocated(self) -> dict[str, Any]:
        """What takes the device's memory: blocks by their size, and tensors that Python knows, the largest first."""
        if not self.on_gpu:
            return {}
        gc.collect()
        blocks: Counter[str] = Counter()
        for segment in torch.cuda.memory.memory_snapshot():
            pool = "" if tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0) else ", in the pool of a graph"
            for block in segment["blocks"]:
                if block["state"] == "active_allocated" and block["size"] >= 2**16:
                    blocks[f"{block['size'] / 2**20:.2f} MiB, stream {segment['stream']}{pool}"] += 1
        tensors: Counter[str] = Counter()
        seen = set()
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor) and thing.is_cuda and thing.layout is torch.strided:
                storage = thing.untyped_storage()
                if storage.nbytes() >= 2**16 and storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    tensors[f"{storage.nbytes() / 2**20:.2f} MiB of {tuple(thing.shape)}, {thing.dtype}"] += 1

        def largest(found: Counter[str]) -> dict[str, int]:
            return dict(sorted(found.items(), key=lambda item: -float(item[0].split()[0]))[:20])

        return {"blocks": largest(blocks), "tensors": largest(tensors)}

    @contextmanager
    def peak_memory(self, found: dict[str, float]) -> Iterator[None]:
        """Put into `found` the largest number of GiB that tensors took inside of this context, and what was reserved for them."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.on_gpu:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30

    def clean(self) -> None:
        """Let go of what an earlier job left."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    @cached_property
    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy on the device that is far larger than its caches."""
        source = torch.empty((2**30 if self.on_gpu else 2**22) // 2, dtype=torch.bfloat16, device=self.device).normal_()
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.median_seconds(lambda: target.copy_(source))

    @cached_property
    def product_flops(self) -> float:
        """FLOP/s of a large matrix product in bfloat16, on random numbers."""
        size = 8192 if self.on_gpu else 128
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * size**3 / self.median_seconds(lambda: a @ b)

    def describe(self) -> dict[str, Any]:
        """What figures depend on besides the code."""
        found: dict[str, Any] = {"device": "CPU", "versions": versions(*PACKAGES), "cuda": torch.version.cuda}
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "device": properties.name,
                "memory_gib": properties.total_memory / 2**30,
                "capability": list(torch.cuda.get_device_capability()),
                "multiprocessors": properties.multi_processor_count,
            }
        return found
