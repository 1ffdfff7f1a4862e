"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_torch.arguments import TorchArguments

    return [TorchArguments]


@hookimpl
def slime_train_backends() -> dict[str, Lazy]:
    return {
        "torch": Lazy(
            "slime_torch.backend:TorchBackend",
            "any Hugging Face causal LM, in one process or on several ranks",
            reads_options=(
                "OptimizerArguments",
                "LoraArguments",
                "TorchArguments",
                "fp8_recipe?fp8_format",
                "fp8_emulation?fp8_format",
            ),
        )
    }
