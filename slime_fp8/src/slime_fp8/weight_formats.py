"""How quantised weights lie in checkpoints and are handed to engines: what tensors are called, what shape scales have, and what
config.json says. The names and shapes are those that transformers reads, and that vLLM and SGLang describe.

| format | weight | scales | read as |
|---|---|---|---|
| block | (N, K) e4m3 | `weight_scale_inv` (N/128, K/128) float32 | `fp8` with `weight_block_size` |
| channel | (N, K) e4m3 | `weight_scale` (N, 1) float32 | `compressed-tensors`, `float-quantized` |
| tensor | (N, K) e4m3 | `weight_scale` (1,) float32 | `compressed-tensors`, `float-quantized` |
| mxfp8 | (N, K) e4m3 | `weight_scale_inv` (N, K/32) uint8, exponents | `mxfp8` |

Numbers of blocks are rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from slime_core.errors import DataError
from slime_fp8.quantise import Quantised, Quantiser
from slime_fp8.scales import DTYPES

Strategy = Literal["block", "channel", "tensor", "mxfp8"]


@dataclass(frozen=True)
class WeightFormat:
    """One way to store weights.

    Attributes:
        strategy: its name.
        quantiser: makes numbers and scales.
        suffix: what the name of a weight is extended with for its scales.
    """

    strategy: Strategy
    quantiser: Quantiser
    suffix: str

    def stored(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Quantise a weight (N, K), and return {name: tensor} of numbers and scales.

        Raises:
            DataError: the weight has NaN or Inf, which 8 bits would hide.
        """
        if not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise DataError(
                f"{name} has {count} numbers that are NaN or Inf, of {weight.numel()}; expected finite weights. Take a "
                "checkpoint from before training went wrong."
            )
        made = self.quantiser.quantise(weight)
        return {name: made.data, name + self.suffix: made.scales.reshape(self._scale_shape(weight.shape))}

    def layout(self, name: str, shape: Sequence[int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `stored` will return for a weight of this shape: {name: dtype and shape}."""
        scales = torch.uint8 if self.quantiser.scaling == "e8m0" else torch.float32
        return {
            name: (DTYPES[self.quantiser.format], tuple(shape)),
            name + self.suffix: (scales, self._scale_shape(shape)),
        }

    def is_ragged(self, shape: Sequence[int]) -> bool:
        """Whether the last blocks of a weight of this shape are not full."""
        return any(extent % size for extent, size in zip(shape, self._block(shape), strict=True))

    def restored(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight (N, K), float32, of its numbers and scales.

        Raises:
            DataError: the scales are missing, or have another shape.
        """
        data, scales = tensors[name], tensors.get(name + self.suffix)
        if scales is None:
            raise DataError(f"{name} is {data.dtype}, but there is no {name}{self.suffix} with its scales.")
        expected = self._scale_shape(data.shape)
        if tuple(scales.shape) != expected and (tuple(scales.shape), expected) != ((), (1,)):
            raise DataError(
                f"{name}{self.suffix} has shape {tuple(scales.shape)}; expected {expected} for a weight of shape "
                f"{tuple(data.shape)} in the format {self.strategy!r}."
            )
        if scales.dtype != torch.uint8:
            scales = scales.to(torch.float32)
        block = self._block(data.shape)
        return Quantised(data, scales.reshape(self._blocks(data.shape)), block).restored()

    def quantization_config(self, left_out: Sequence[str]) -> dict[str, Any]:
        """The entry of config.json.

        Args:
            left_out: names of modules that are not quantised.
        """
        if self.strategy in ("channel", "tensor"):
            return _compressed_tensors(self.strategy, left_out)
        config: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        if self.strategy == "mxfp8":
            config["quant_method"] = "mxfp8"
        config["weight_block_size"] = list(self.quantiser.block)
        if self.quantiser.scaling in ("power_of_two", "e8m0"):
            config["scale_fmt"] = "ue8m0"
        return config | ({"modules_to_not_convert": list(left_out)} if left_out else {})

    def _block(self, shape: Sequence[int]) -> tuple[int, int]:
        rows, columns = (size or max(1, extent) for size, extent in zip(self.quantiser.block, shape, strict=True))
        return rows, columns

    def _blocks(self, shape: Sequence[int]) -> tuple[int, int]:
        (rows, columns), (n, k) = self._block(shape), shape
        return -(-n // rows), -(-k // columns)

    def _scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1,) if self.strategy == "tensor" else self._blocks(shape)


FORMATS: dict[Strategy, WeightFormat] = {
    "block": WeightFormat("block", Quantiser("e4m3", (128, 128)), "_scale_inv"),
    "channel": WeightFormat("channel", Quantiser("e4m3", (1, None)), "_scale"),
    "tensor": WeightFormat("tensor", Quantiser("e4m3", (None, None)), "_scale"),
    "mxfp8": WeightFormat("mxfp8", Quantiser("e4m3", (1, 32), "e8m0"), "_scale_inv"),
}


def block_format(block: tuple[int, int] = (128, 128), power_of_two: bool = False) -> WeightFormat:
    """Blocks of a size of your own, or with scales that are powers of two."""
    quantiser = Quantiser("e4m3", block, "power_of_two" if power_of_two else "float32")
    return replace(FORMATS["block"], quantiser=quantiser)


def format_of(quantization_config: Mapping[str, Any]) -> WeightFormat:
    """The format of a checkpoint, by the entry `quantization_config` of its config.json.

    Raises:
        DataError: it is none of those that are written here.
    """
    method, block = quantization_config.get("quant_method"), quantization_config.get("weight_block_size")
    if method == "fp8" and isinstance(block, list) and len(block) == 2:
        return block_format((int(block[0]), int(block[1])), quantization_config.get("scale_fmt") == "ue8m0")
    if method == "mxfp8":
        return FORMATS["mxfp8"]
    if method == "compressed-tensors" and quantization_config.get("format") == "float-quantized":
        groups = quantization_config.get("config_groups", {}).values()
        strategies = {group.get("weights", {}).get("strategy") for group in groups}
        if len(strategies) == 1 and strategies <= {"channel", "tensor"}:
            return FORMATS[cast("Strategy", strategies.pop())]
    raise DataError(
        f"The checkpoint is quantised as {dict(quantization_config)}; expected quant_method 'fp8' with a weight_block_size of "
        "two numbers, 'mxfp8', or 'compressed-tensors' in the format 'float-quantized' with the strategy channel or tensor."
    )


def _compressed_tensors(strategy: str, left_out: Sequence[str]) -> dict[str, Any]:
    """Weights with static scales, and activations with one for each token that is found when it is computed."""

    def numbers(strategy: str, dynamic: bool) -> dict[str, Any]:
        return {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": dynamic}

    group = {"targets": ["Linear"], "weights": numbers(strategy, False), "input_activations": numbers("token", True)}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(left_out),
    }
