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
    """

    def __init__(self) -> None:
        self._kept: list[tuple[UntypedStorage, UntypedStorage]] = []

    def leave(self, tensors: Iterable[Tensor], device: device) -> None:
        """Move the contents of the tensors that lie on a device of this kind to host memory."""
        import torch

        new: Callable[[int], UntypedStorage] = torch.UntypedStorage
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage.device.type == device.type and storage.nbytes():  # one that several tensors share is empty then
                self._kept.append((storage, new(storage.nbytes()).copy_(storage)))
                storage.resize_(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Move everything back to where it was; does nothing if there is nothing to bring back."""
        for storage, copy in self._kept:
            storage.resize_(copy.nbytes())
            storage.copy_(copy)
        self._kept = []
