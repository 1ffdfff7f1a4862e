"""`WeightSamples`: compares some of the weights in a server with those that were sent to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_engine_sglang.control import ControlClient
from slime_engine_sglang.errors import SGLangError, Unreachable
from slime_engine_sglang.transports import Piece, is_low_precision

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_TENSOR = 1 << 22
"""The number of elements of the largest tensor that a server is asked to show a row of: it first turns all of the
tensor into a Python list."""


class WeightSamples:
    """The first row of some of the tensors that are sent: of those that are not too large, the first, the second, the
    fourth, the eighth and so on. Not of weights in low precision and their scales, which servers keep in forms of their
    own."""

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._count = 0

    def take(self, piece: Piece) -> Piece:
        """Take samples of a piece, and return the piece."""
        low = {name for name, tensor in piece if is_low_precision(tensor)}
        for name, tensor in piece:
            if tensor.numel() > LARGEST_TENSOR or name in low or name.rpartition("_scale")[0] in low:
                continue
            self._count += 1
            if self._count & (self._count - 1) == 0:
                self._rows[name] = tensor.detach()[:1].cpu().clone()
        return piece

    def compare(self, server: ControlClient) -> None:
        """Compare the samples with a server's weights, in the server's dtype. Models that cannot show theirs pass.

        Raises:
            SGLangError: a sample differs.
            Unreachable: the server does not answer.
        """
        import torch

        for name, row in self._rows.items():
            try:
                found = server.call("/get_weights_by_name", {"name": name, "truncate_size": 1})
            except Unreachable:
                raise
            except SGLangError:
                return
            if not isinstance(found, list):
                return
            theirs = torch.tensor(found, dtype=torch.float32).flatten()
            dtypes = (torch.float32, torch.bfloat16, torch.float16)
            if not any(torch.equal(row.to(dtype).float().flatten(), theirs) for dtype in dtypes):
                raise SGLangError(f"{server.url} has another {name} than it was sent.")
