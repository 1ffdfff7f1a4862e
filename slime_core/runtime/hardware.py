"""What computes, for recipes that not every GPU can: asked of torch where it is imported anyway, and of NVIDIA's driver where a run
is to be refused before anything is."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.contracts.precision import Hardware

if TYPE_CHECKING:
    import torch

CPU = Hardware("CPU")


def hardware_of(device: torch.device) -> Hardware:
    """What a torch device is."""
    import torch

    if device.type != "cuda":
        return CPU if device.type == "cpu" else Hardware(device.type)
    properties = torch.cuda.get_device_properties(device)
    return Hardware(properties.name, (properties.major, properties.minor), _version(torch.version.cuda))


def visible_hardware() -> Hardware:
    """The GPU that torch would compute on in this process, without importing torch; `CPU` if it would find none.

    It is the first one that CUDA_VISIBLE_DEVICES leaves, as NVIDIA's management library (NVML) tells; none without that library or
    with a torch that was built without CUDA.
    """
    with _visible_device() as found:
        if found is None:
            return CPU
        nvml, device, cuda = found
        name, major, minor = ctypes.create_string_buffer(96), ctypes.c_int(), ctypes.c_int()
        if nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name))) != 0:
            return CPU
        if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) != 0:
            return CPU
        return Hardware(name.value.decode(), (major.value, minor.value), cuda)


def visible_memory() -> int:
    """The bytes of the GPU that `visible_hardware` names; 0 where there is none."""
    with _visible_device() as found:
        if found is None:
            return 0
        nvml, device, _ = found
        sizes = (ctypes.c_ulonglong * 3)()  # total, free, used
        return int(sizes[0]) if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(sizes)) == 0 else 0


@contextmanager
def _visible_device() -> Iterator[tuple[ctypes.CDLL, ctypes.c_void_p, tuple[int, int]] | None]:
    """(the library, the device, the version of CUDA) of the GPU that torch would compute on; None if it would find none."""
    cuda = _version(_cuda_of_torch())
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    nvml = None
    if cuda is not None and first not in ("", "-1"):
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            nvml = None
    if nvml is None or cuda is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        device = ctypes.c_void_p()
        if first.isdecimal():
            found = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(first)), ctypes.byref(device))
        else:
            found = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(device))
        yield (nvml, device, cuda) if found == 0 else None
    finally:
        nvml.nvmlShutdown()


def _cuda_of_torch() -> str | None:
    """The version of CUDA that torch was built with, from its file version.py."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    try:
        text = (Path(torch.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _version(text: str | None) -> tuple[int, int] | None:
    """ "12.9" → (12, 9)."""
    if text is None:
        return None
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)
