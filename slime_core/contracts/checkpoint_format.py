"""Formats of quantised checkpoints: which weights one stores in low precision, and how.

A model that is served in low precision is a checkpoint whose config.json has a `quantization_config`. Every update of an engine's
weights, and every export for it, must be what that checkpoint would be if it were made anew; one object says what that is. It is
chosen by the entry's `quant_method`.

Importing this module does not import torch; the tensors bring it along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from slime_core.contracts.kind import Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, whose numbers are not read.

    Attributes:
        dtype: as safetensors calls it, such as "BF16" or "F8_E4M3".
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]


class CheckpointFormat(Protocol):
    """How one quantised checkpoint stores its weights. Made as `CheckpointFormat(quantization_config, tensors)`."""

    def __init__(self, quantization_config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
        """Args:
            quantization_config: the entry of config.json.
            tensors: {name: dtype and shape} of everything in the checkpoint's files.

        Raises:
            DataError: the entry is of no known kind, or the files contradict it.
        """

    def quantises(self, name: str) -> bool:
        """Whether the checkpoint has the weight of this name in low precision. An engine reads it so, and no other weight."""
        raise NotImplementedError

    def layout(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `stored` returns for a weight of this shape, {name: (dtype, shape)}, in its order."""
        raise NotImplementedError

    def stored(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """What the checkpoint holds of a weight (N, K) in high precision: {name: tensor}, the weight under its own name and its
        scales beside it.

        Raises:
            DataError: the weight has NaN or Inf.
        """
        raise NotImplementedError

    def restored(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, in float32, of what `stored` returned."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The format in a few words, for people: "FP8 in blocks of 128 × 128"."""
        raise NotImplementedError


@dataclass(frozen=True)
class QuantisedCheckpoint:
    """A checkpoint in low precision: what an engine serves, and what weights for it must be like.

    Attributes:
        folder: where it is, as an option names it.
        format: how it stores its weights.
        tensors: {name: dtype and shape} of everything in its files.
    """

    folder: str
    format: CheckpointFormat
    tensors: Mapping[str, StoredTensor]

    def __str__(self) -> str:
        count = sum(map(self.format.quantises, self.tensors))
        return f"{self.folder} ({count} weights in {self.format})"


KINDS = (Kind("checkpoint_format", "slime_checkpoint_formats", CheckpointFormat, ("--hf-checkpoint",)),)
"""`--hf-checkpoint` chooses one by its config.json: the component is called like the `quant_method`."""
