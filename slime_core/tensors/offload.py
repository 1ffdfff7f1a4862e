"""`Offloaded`: the contents of tensors move from a device to host memory for a while, and back. For train backends and
engines that offer `offload` and `onload`; the core itself calls only those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage, device


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
