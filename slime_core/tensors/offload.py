"""`Offloaded`: the contents of tensors move from a device to host memory for a while, and back. For train backends and
engines that offer `offload` and `onload`; the core itself calls only those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from slime_core.arguments import RunArguments
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage, device


def check_device(device: device, args: RunArguments) -> None:
    """Refuse `--offload` and `--optimizer-cpu-offload` where there is no memory but the host's. For train backends.

    Raises:
        ArgumentError: one of them is given, and the device is the CPU.
    """
    given = {
        "--offload": args.offload and args.colocate,
        "--optimizer-cpu-offload": args.optimizer_cpu_offload,
    }
    for option, wanted in given.items():
        if wanted and device.type == "cpu":
            raise ArgumentError(
                f"{option} needs a GPU: this process trains on the CPU, so all that it holds is in host memory "
                "already. Leave the option out."
            )


class Offloaded:
    """The contents of tensors while they are in host memory.

    The tensors stay what they are, and where the optimizer, FSDP and tied layers know them; only the memory behind them
    goes. Until it is back nobody may read them.

    What comes from a CUDA device goes to pinned memory, at the full speed of its bus, which is kept when everything is back
    (`slime_core.tensors.host_memory`).
    """

    def __init__(self) -> None:
        self._kept: list[tuple[UntypedStorage, list[Tensor]]] = []
        self._blocks: list[Tensor] = []  # pinned ones

    def leave(self, tensors: Iterable[Tensor], device: device) -> None:
        """Move the contents of the tensors that lie on a device of this kind to host memory."""
        import torch

        from slime_core.tensors.host_memory import HOST_MEMORY

        pinned = device.type == "cuda"
        storages = [
            storage
            for storage in dict.fromkeys(tensor.untyped_storage() for tensor in tensors)
            if storage.device.type == device.type and storage.nbytes()
        ]
        left = sum(storage.nbytes() for storage in storages)
        blocks = HOST_MEMORY.blocks(left) if pinned else iter([torch.empty(left, dtype=torch.uint8)])
        block = torch.empty(0, dtype=torch.uint8)
        for storage in storages:
            pieces: list[Tensor] = []
            contents, start = _bytes_of(storage), 0
            while start < len(contents):
                if not len(block):
                    block = next(blocks)
                    self._blocks += [block] * pinned
                size = min(len(block), len(contents) - start)
                pieces.append(block[:size].copy_(contents[start : start + size], non_blocking=True))
                block, start = block[size:], start + size
            self._kept.append((storage, pieces))
        if pinned:
            torch.cuda.synchronize(device)  # the copies are made
        for storage, _ in self._kept:
            storage.resize_(0)
        if pinned:
            free_workspaces()
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Move everything back to where it was; does nothing if there is nothing to bring back."""
        import torch

        devices = {storage.device for storage, _ in self._kept}
        for storage, pieces in self._kept:
            storage.resize_(sum(map(len, pieces)))
            contents, start = _bytes_of(storage), 0
            for piece in pieces:
                contents[start : start + len(piece)].copy_(piece, non_blocking=True)
                start += len(piece)
        self._kept = []
        if self._blocks:
            from slime_core.tensors.host_memory import HOST_MEMORY

            for device in devices:
                torch.cuda.synchronize(device)  # nothing reads them any more
            HOST_MEMORY.give_back(self._blocks)
            self._blocks = []


def free_workspaces() -> None:
    """Let torch free what cuBLAS computes in, 32 MiB on an H200 for every thread and stream that has multiplied. The next product
    gets a new one. CUDA graphs, which would go on using it, have theirs in memory of their own."""
    import torch

    clear: Callable[[], None] | None = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def _bytes_of(storage: UntypedStorage) -> Tensor:
    """All bytes of a storage, in the same memory."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
