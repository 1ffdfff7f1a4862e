"""Which machine serves a quantised checkpoint with SGLang: so that a run is refused before anything is loaded. `arguments` asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangArguments

NEEDS = {"fp8": (8, 0), "compressed-tensors": (8, 9), "mxfp8": (10, 0)}
"""The lowest compute capability that SGLang 0.5.23 asks for, by `quant_method`. Below 8.9 it computes FP8 in blocks in bfloat16."""


def refused(args: SGLangArguments) -> str:
    """Why servers on this machine could not serve `--hf-checkpoint`, and what would do; "" if they could, if it is not quantised
    or in a way that SGLang itself must judge, and where servers may be on other machines."""
    from slime_core.arguments import RunArguments
    from slime_core.data.quantised_checkpoints import quantization_config
    from slime_core.runtime.hardware import visible_hardware

    if not isinstance(args, RunArguments) or args.rollout_engine != "sglang" or args.debug_train_only:
        return ""
    here = args.ray_address in (None, "", "local") and args.actor_num_nodes == 1
    entry = quantization_config(args.hf_checkpoint)
    method = str(entry.get("quant_method")) if entry else ""
    if not here or args.rollout_external_engine_addrs or method not in NEEDS:
        return ""
    hardware, needed = visible_hardware(), NEEDS[method]
    able = (
        "amx_tile" in _cpu_flags() and method == "fp8" if hardware.capability is None else hardware.capability >= needed
    )
    if able:
        return ""
    found = f"has {_shown(hardware.capability)}" if hardware.capability else "has none"
    on_cpus = ", or a CPU with AMX" if method == "fp8" else ""
    return (
        f"--hf-checkpoint {args.hf_checkpoint} is quantised (quant_method {method!r}), for which SGLang needs a GPU of compute "
        f"capability {_shown(needed)} or higher{on_cpus}; {hardware.name} {found}. Give --rollout-engine local, which restores the "
        "weights and computes in high precision, or an --hf-checkpoint that is not quantised."
    )


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _shown(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
