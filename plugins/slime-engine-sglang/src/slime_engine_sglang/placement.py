"""Where the servers of a run are: on GPUs of this machine, in the slots of a cluster, or elsewhere already; and what
follows from that: what must be installed, and whether memory can be given back. `engine` asks for it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.errors import ArgumentError
from slime_core.runtime.slots import engine_slots
from slime_engine_sglang.options import INSTALL
from slime_engine_sglang.server import Server, gives_back_memory

if TYPE_CHECKING:
    from slime_core.arguments.groups.cluster import ClusterArguments
    from slime_engine_sglang.arguments import SGLangArguments, SGLangRunArguments
    from slime_engine_sglang.remote import RemoteServer


def require_installed(args: SGLangArguments) -> None:
    """Raise `ArgumentError` if a program that the run starts is not installed here."""
    for package, is_external in (
        ("sglang", args.rollout_external_engine_addrs),
        ("sglang_router", args.sglang_router_ip),
    ):
        if not is_external and importlib.util.find_spec(package) is None:
            raise ArgumentError(
                f"The engine 'sglang' starts {package}, which is not installed here. Install it with: {INSTALL}"
            )


def servers_of_run(args: SGLangRunArguments, logs: Path) -> Sequence[Server | RemoteServer]:
    """Return the servers that a run starts: in the engine's slots on a cluster, or else on this machine.

    Args:
        logs: the folder for the servers' logs.
    """
    if args.rollout_external_engine_addrs:
        return []
    if slots := engine_slots():
        from slime_engine_sglang.remote import RemoteServer

        return [RemoteServer(args, number, logs / f"server-{number}.log", slot) for number, slot in enumerate(slots)]
    return servers_here(args, logs, gpus_here())


def servers_here(args: SGLangRunArguments, logs: Path, gpus: Sequence[str]) -> list[Server]:
    """Return servers on this machine, where training computes on the first GPU: they start there with --colocate, and leave it
    to training without. Where nothing trains, all GPUs are theirs.

    Args:
        logs: the folder for the servers' logs.
        gpus: the GPUs of this machine; without any the servers compute on its CPU.

    Raises:
        ArgumentError: the numbers of GPUs do not fit.
    """
    per_server = args.rollout_num_gpus_per_engine
    kept = 0 if args.colocate or args.debug_rollout_only else 1
    offered = list(gpus[kept:])
    wanted = args.rollout_num_gpus or (len(gpus) if args.colocate and gpus else per_server)
    if wanted % per_server:
        raise ArgumentError(
            f"--rollout-num-gpus {wanted} cannot be divided into servers of --rollout-num-gpus-per-engine {per_server}."
        )
    if gpus and wanted > len(offered):
        rest = ", the first of which trains. With --colocate the servers share it." if kept else "."
        raise ArgumentError(
            f"The servers need {wanted} GPUs (--rollout-num-gpus), but this machine shows {len(gpus)}{rest}"
        )
    return [
        Server(
            args, number, logs / f"server-{number}.log", gpus=offered[number * per_server : (number + 1) * per_server]
        )
        for number in range(wanted // per_server)
    ]


def gpus_here() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def require_gpus(args: ClusterArguments, servers: Sequence[Server | RemoteServer]) -> None:
    """Raise `ArgumentError` if servers must give back memory but compute on a CPU."""
    if gives_back_memory(args) and not all(server.on_gpu for server in servers):
        raise ArgumentError(
            "--offload: SGLang servers give back the memory of GPUs alone (through torch_memory_saver, which needs "
            "CUDA), and here they compute on a CPU. Leave --offload out, or run on a machine with GPUs."
        )
