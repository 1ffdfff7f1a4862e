"""Which GPU there is, found without importing torch."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from slime_core.contracts.precision import Hardware
from slime_core.runtime import hardware
from slime_core.runtime.hardware import CPU, visible_hardware

LIBRARY = """
#include <string.h>
static const char *names[] = {"NVIDIA H200", "NVIDIA B200"};
static long handles[] = {1, 2};
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index > 1) return 2;
    *device = &handles[index];
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (strcmp(uuid, "GPU-b2")) return 6;
    *device = &handles[1];
    return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
    strncpy(name, names[*(long *)device - 1], length);
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = *(long *)device == 1 ? 9 : 10;
    *minor = 0;
    return 0;
}
"""
H200, B200 = Hardware("NVIDIA H200", (9, 0), (12, 9)), Hardware("NVIDIA B200", (10, 0), (12, 9))


@pytest.fixture(scope="module")
def nvml(tmp_path_factory):
    """A library with the functions of NVML and two GPUs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "nvml.so", folder / "nvml.c"], check=True)
    return folder / "nvml.so"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, H200),
        ("1", B200),
        ("1,0", B200),
        ("GPU-b2", B200),
        ("", CPU),
        ("-1", CPU),
        ("7", CPU),
        ("GPU-other", CPU),
    ],
)
def test_the_gpu_is_the_first_visible_one(nvml, monkeypatch, visible, expected):
    load = hardware.ctypes.CDLL
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: load(str(nvml)) if "nvidia-ml" in name else load(name))
    monkeypatch.setattr(hardware, "_cuda_of_torch", lambda: "12.9")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_hardware() == expected


def test_a_torch_without_cuda_computes_on_the_cpu_whatever_gpus_there_are(nvml, monkeypatch):
    load = hardware.ctypes.CDLL
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: load(str(nvml)))
    monkeypatch.setattr(hardware, "_cuda_of_torch", lambda: None)
    assert visible_hardware() == CPU


def test_both_ways_to_ask_agree_on_this_machine():
    import torch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert visible_hardware() == hardware.hardware_of(device)


@pytest.mark.parametrize(
    "text", ["cuda: Optional[str] = '12.9'", 'cuda = "12.9"', "cuda: str | None = '12.9'\nhip = None"]
)
def test_the_cuda_of_torch_is_read_from_its_file(monkeypatch, tmp_path, text):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\ndebug = False\n{text}\n")
    spec = hardware.importlib.util.spec_from_file_location("torch", tmp_path / "torch" / "__init__.py")
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: spec)
    assert hardware._cuda_of_torch() == "12.9"
