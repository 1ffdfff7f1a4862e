"""What all precision recipes of this distribution share. A recipe of `slime_fp8.recipes` adds what is its own: how operands are
quantised, how weights are stored, and which hardware can do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError
from slime_fp8.arguments import Fp8RunArguments
from slime_fp8.fused import gpu_arithmetic
from slime_fp8.hardware import refusal, without_hardware
from slime_fp8.linear import EMULATION, Arithmetic, QuantisedLinear
from slime_fp8.modules import QuantisedModules
from slime_fp8.operands import DelayedOperands, Operands
from slime_fp8.quantise import Format
from slime_fp8.weight_formats import WeightFormat


class Recipe:
    """A precision recipe; see `slime_core.contracts.precision.PrecisionRecipe`.

    Attributes:
        name: what `--fp8-recipe` and Megatron call it.
        tokens: the number of tokens of a packed row must be a multiple of this.
        weights: how weights are stored.
        modules: which modules are quantised.
        gradients: format of gradients; all else is e4m3.
    """

    name: ClassVar[str]
    tokens: ClassVar[int] = 16
    weights: WeightFormat

    def __init__(self, args: Fp8RunArguments, num_layers: int) -> None:
        ends = args.first_last_layers_bf16
        self.args = args
        self.gradients: Format = "e5m2" if args.fp8_format == "hybrid" else "e4m3"
        self.modules = QuantisedModules(
            num_layers,
            args.num_layers_at_start_in_bf16 if ends else 0,
            args.num_layers_at_end_in_bf16 if ends else 0,
            tuple(args.fp8_modules_to_not_convert),
        )

    def operands(self) -> Operands | DelayedOperands:
        """New quantisers for the matrices of one linear layer."""
        raise NotImplementedError

    def quantises(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a weight is quantised, for products and where it is stored."""
        return self.modules.holds(name, shape)

    def linear(self, name: str) -> nn.Module:
        """A new module that computes products with one weight in emulation."""
        return self.products(EMULATION)

    def hardware_linear(self, name: str, hardware: Hardware) -> nn.Module:
        """A new module that computes products with one weight by the arithmetic of a GPU.

        Raises:
            ArgumentError: the hardware has none for the recipe, or torch has no product for it.
        """
        if why := self.refusal(hardware) or self.torch_refusal(hardware):
            raise ArgumentError(without_hardware(self.name, why, hardware))
        return self.products(gpu_arithmetic(self.operands()))

    def products(self, arithmetic: Arithmetic) -> nn.Module:
        """A new module that computes products with one weight."""
        return QuantisedLinear(self.operands(), arithmetic)

    def row_multiple(self) -> int:
        """Packed rows have a multiple of so many tokens."""
        return self.tokens

    def stored(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Numbers and scales of a weight that is quantised.

        Raises:
            ArgumentError: the recipe does not quantise it.
            DataError: it has NaN or Inf.
        """
        if not self.quantises(name, tuple(weight.shape)):
            raise ArgumentError(f"The recipe {self.name!r} leaves {name} out of FP8; store it as it is.")
        return self.weights.stored(name, weight)

    def restored(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, in float32, of what `stored` returned."""
        return self.weights.restored(name, tensors)

    def quantization_config(self, weights: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The entry of config.json for a checkpoint with weights of these names and shapes."""
        return self.weights.quantization_config(self.modules.left_out(weights))

    def megatron_config(self) -> dict[str, Any]:
        """Fields of megatron-core's `TransformerConfig`."""
        return {
            "fp8": self.args.fp8_format or "e4m3",
            "fp8_recipe": self.name,
            "first_last_layers_bf16": self.args.first_last_layers_bf16,
            "num_layers_at_start_in_bf16": self.args.num_layers_at_start_in_bf16,
            "num_layers_at_end_in_bf16": self.args.num_layers_at_end_in_bf16,
        }

    def environment(self, hardware: Hardware) -> dict[str, str]:
        """Environment variables for Transformer Engine: none."""
        return {}

    def refusal(self, hardware: Hardware) -> str:
        """Why hardware cannot compute the recipe itself; "" if it can."""
        return refusal(self.name, hardware)

    def torch_refusal(self, hardware: Hardware) -> str:
        """Why torch has no products for the recipe on hardware that can compute it, in a sentence; "" if it has."""
        return ""
