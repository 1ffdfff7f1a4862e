"""Transformer Engine's layers in place of megatron-core's and of this package's, for `--transformer-impl transformer_engine`.
`slime_megatron.model` calls this.

Never run so far: it needs a CUDA device. What the weights of these layers are called is told by `slime_megatron.names`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from slime_core.contracts.precision import PrecisionRecipe
from slime_core.errors import ArgumentError
from slime_core.runtime.hardware import hardware_of
from slime_megatron.arguments import MegatronArguments, MegatronRunArguments
from slime_megatron.spec import ModelSpec

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from slime_megatron.layout import ParallelLayout

_OTHERWISE = "Leave out --transformer-impl transformer_engine: the layers of this package have it."


def chosen(args: MegatronArguments) -> bool:
    """Whether Transformer Engine's layers are asked for."""
    return args.transformer_impl == "transformer_engine"


def require_expressible(spec: ModelSpec, layout: ParallelLayout, args: MegatronArguments) -> None:
    """Refuse a model that these layers do not compute exactly.

    Raises:
        ArgumentError: it has something of its own, or would be wrong in this layout.
    """
    own = {
        "norms with weights around zero": spec.norm != "rms",
        "norms behind attention and MLP": spec.post_norms,
        "a soft cap of attention scores": spec.attention_soft_cap is not None,
        "windows in some layers": spec.windows is not None,
    }
    if found := [what for what, has in own.items() if has]:
        raise ArgumentError(f"The model has {', '.join(found)}, which Transformer Engine's layers do not. {_OTHERWISE}")
    if spec.latent and layout.tensor > 1 and not layout.sequence:
        raise ArgumentError(
            "A model with latent attention under --tensor-model-parallel-size needs --sequence-parallel with Transformer "
            f"Engine's layers: the gradient of its rotary keys would not be summed over ranks. Give it. {_OTHERWISE}"
        )
    if spec.latent and args.rope_fusion and spec.config.get("rope_type") != "yarn":
        raise ArgumentError("--rope-fusion: with latent attention the fused kernel knows YaRN alone. Leave it out.")


def prepare_low_precision(make: Callable[[], PrecisionRecipe | None], device: torch.device) -> PrecisionRecipe | None:
    """The recipe that these layers are to compute, with its environment set; None without one.

    Args:
        make: makes the recipe. It is asked again when the environment is set, which recipes read.

    Raises:
        ArgumentError: this GPU cannot compute it.
    """
    recipe = make()
    if recipe is None:
        return None
    hardware = hardware_of(device)
    if why := recipe.refusal(hardware):
        raise ArgumentError(
            f"{why} Give another --fp8-recipe, or --fp8-emulation without --transformer-impl transformer_engine."
        )
    os.environ |= recipe.environment(hardware)
    return make()


def low_precision_fields(args: MegatronRunArguments, recipe: PrecisionRecipe | None) -> dict[str, Any]:
    """Fields of megatron-core's configuration that make these layers compute a recipe."""
    if recipe is None:
        return {}
    found = {**recipe.megatron_config(), "fp8_param": args.fp8_param_gather}
    if args.activation_func_fp8_input_store:  # only the fused function has it
        found |= {"activation_func_fp8_input_store": True, "bias_activation_fusion": True}
    return found


def gathering(args: MegatronRunArguments) -> dict[str, Any]:
    """How weights travel between ranks in FP8: fields of megatron-core's `DistributedDataParallelConfig`."""
    if not (chosen(args) and args.fp8_format):
        return {}
    return {
        "fp8_param_gather": args.fp8_param_gather,
        "reuse_grad_buf_for_mxfp8_param_ag": args.reuse_grad_buf_for_mxfp8_param_ag,
    }


def optimizing(args: MegatronRunArguments) -> dict[str, Any]:
    """What the optimizer must know of that: fields of megatron-core's `OptimizerConfig`."""
    if not (chosen(args) and args.fp8_format):
        return {}
    return {
        "fp8_recipe": args.fp8_recipe,
        "reuse_grad_buf_for_mxfp8_param_ag": args.reuse_grad_buf_for_mxfp8_param_ag,
    }


def fields(spec: ModelSpec, args: MegatronArguments) -> dict[str, Any]:
    """Fields of megatron-core's configuration that depend on whose layers compute."""
    if not chosen(args):
        return {"apply_rope_fusion": False}
    from megatron.core.transformer.enums import AttnBackend

    found: dict[str, Any] = {
        "apply_rope_fusion": args.rope_fusion,
        "attention_backend": AttnBackend[args.attention_backend],
    }
    if spec.config.get("num_moe_experts"):
        found |= {"moe_grouped_gemm": args.moe_grouped_gemm, "moe_permute_fusion": args.moe_permute_fusion}
    return found


def block(config: TransformerConfig) -> Any:
    """The layers of this pipeline stage."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    return get_gpt_decoder_block_spec(config, use_transformer_engine=True, normalization=config.normalization)
