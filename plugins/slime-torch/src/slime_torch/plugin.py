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
                "only_train_params_name_list",
                "freeze_params_name_list",
                "freeze_vision",
                "image_min_pixels",
                "image_max_pixels",
                "TorchArguments",
                "fp8_recipe?fp8_format",
                "fp8_emulation?fp8_format",
                "fp8_param_gather?fp8_format",
                "reuse_grad_buf_for_mxfp8_param_ag?fp8_format",
                "activation_func_fp8_input_store?fp8_format",
            ),
            check="slime_torch.checks:check",
        )
    }
