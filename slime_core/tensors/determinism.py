"""`--deterministic-mode`: the same operations on the same numbers give the same bits every time, on a GPU too. For train backends.

Some kernels of a GPU add numbers in whatever order they come: flash attention's gradient of the queries, and sums into places that are
computed (`index_add`, `scatter_add`). In this mode torch takes others, which are slower, and refuses an operation for which it has none.
cuBLAS and NCCL are told by environment variables, which they read once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from slime_core.arguments import RunArguments
from slime_core.errors import ArgumentError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ALWAYS = {CUBLAS: (":4096:8", ":16:8"), "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",)}
_SEVERAL_RANKS = {"NCCL_ALGO": ("^NVLS", "Tree", "Ring", "CollnetDirect", "CollnetChain")}
"""What variables may be, the value that they get first. Those of NCCL are Megatron's choice: NVLink's switches add in any order."""


def prepare(args: RunArguments) -> None:
    """Set the variables in this process, where the mode is asked for and there is a GPU. To be called before CUDA starts.

    Raises:
        ArgumentError: the environment says otherwise, or it is too late.
    """
    if args.deterministic_mode and torch.cuda.is_available():
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch does not annotate it
        os.environ.update(missing(os.environ, several, started))


def missing(environment: Mapping[str, str], several: bool, started: bool) -> dict[str, str]:
    """The variables that must be set besides, with their values.

    Args:
        several: there are several training ranks.
        started: CUDA has started in this process.
    """
    found = {}
    for name, values in {**_ALWAYS, **(_SEVERAL_RANKS if several else {})}.items():
        given = environment.get(name)
        if given is None:
            found[name] = values[0]
        elif given not in values:
            raise ArgumentError(
                f"--deterministic-mode: the environment variable {name} is {given!r}, with which numbers may differ from run to run. "
                f"It must be {' or '.join(values)}: export one of these, or unset it."
            )
    if CUBLAS in found and started:
        raise ArgumentError(
            f"--deterministic-mode: CUDA has started in this process without the environment variable {CUBLAS}, which cuBLAS reads "
            f"when it starts. Export it before: export {CUBLAS}={found[CUBLAS]}"
        )
    return found


@contextmanager
def deterministic(args: RunArguments) -> Iterator[None]:
    """Compute in this mode inside of the context, if it is asked for. It holds for all threads of the process meanwhile."""
    if not args.deterministic_mode:
        yield
        return
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    others = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Filling memory that nobody has written yet is for finding mistakes, and takes a pass over all of it.
    cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = others


def repeats_itself(args: RunArguments) -> bool:
    """Whether training in this process gives the same bits every time: on a CPU, and in this mode."""
    return args.deterministic_mode or not torch.cuda.is_available()
