"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


_OF_FP8 = (
    "fp8_recipe",
    "fp8_emulation",
    "fp8_param_gather",
    "reuse_grad_buf_for_mxfp8_param_ag",
    "activation_func_fp8_input_store",
)


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_megatron.arguments import MegatronComputeArguments, MegatronLayoutArguments
    from slime_megatron.model_flags import MegatronModelArguments

    return [MegatronLayoutArguments, MegatronComputeArguments, MegatronModelArguments]


@hookimpl
def slime_train_backends() -> dict[str, Lazy]:
    return {
        "megatron": Lazy(
            "slime_megatron.backend:MegatronBackend",
            "megatron-core: a model cut over ranks by tensor, pipeline, context, expert and data parallelism",
            reads_options=(
                "OptimizerArguments",
                "LoraArguments",
                "only_train_params_name_list",
                "freeze_params_name_list",
                "MegatronLayoutArguments",
                "MegatronComputeArguments",
                "MegatronModelArguments",
                *(f"{name}?fp8_format" for name in _OF_FP8),
            ),
            check="slime_megatron.checks:check",
        )
    }


@hookimpl
def slime_checkpoint_conversions() -> dict[str, Lazy]:
    return {
        "hf-to-torch-dist": Lazy("slime_megatron.convert_hf:main", "a Hugging Face checkpoint into one of Megatron"),
        "torch-dist-to-hf": Lazy(
            "slime_megatron.convert_torch_dist:main",
            "a checkpoint of Megatron, or of a run with --train-backend megatron, into a Hugging Face one",
        ),
    }
