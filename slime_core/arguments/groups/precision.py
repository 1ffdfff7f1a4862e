"""Low precision, under the names of Megatron: which recipe, and which layers it leaves out. Train backends, engines and
converters read them alike."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from slime_core.contracts.options import ArgumentGroup, option


class PrecisionArguments(ArgumentGroup):
    """Low precision"""

    fp8_format: Literal["e4m3", "hybrid"] | None = option(
        None,
        "Compute matrix products in FP8: e4m3, or hybrid, where gradients are e5m2. Default: not in FP8. "
        "--fp8-recipe says how.",
    )
    fp8_recipe: str = option(
        "delayed",
        "Precision recipe: how FP8 numbers are scaled. A name such as tensorwise, delayed, blockwise or mxfp8, or an import path.",
        read_by_core="fp8_format",
        when="fp8_format",
    )
    fp8_emulation: bool = option(
        False,
        "Emulate FP8, on any device: numbers are rounded as FP8 rounds them, and multiplied in high precision. Slower than no FP8.",
        when="fp8_format",
    )
    first_last_layers_bf16: bool = option(
        False,
        "Leave the first and last layers out of FP8; --num-layers-at-start-in-bf16 and --num-layers-at-end-in-bf16 say how many.",
        when="fp8_format",
    )
    num_layers_at_start_in_bf16: int = option(
        1, "How many first layers --first-last-layers-bf16 leaves out of FP8.", ge=0, when="first_last_layers_bf16"
    )
    num_layers_at_end_in_bf16: int = option(
        1, "How many last layers --first-last-layers-bf16 leaves out of FP8.", ge=0, when="first_last_layers_bf16"
    )
    fp8_modules_to_not_convert: list[str] = option(
        [],
        "Further modules to leave out of FP8: regular expressions that are found in their Hugging Face names. Routers, heads, "
        "embeddings and norms always are left out.",
        when="fp8_format",
    )
    fp8_param_gather: bool = option(
        False,
        "Let training ranks gather weights in FP8. Transformer Engine's alone: refused in emulation.",
        when="fp8_format",
        affects_result=False,
    )
    reuse_grad_buf_for_mxfp8_param_ag: bool = option(
        False,
        "Gather weights in MXFP8 in the memory of gradients. Transformer Engine's alone: refused in emulation.",
        when="fp8_format",
        affects_result=False,
    )
    activation_func_fp8_input_store: bool = option(
        False,
        "Keep inputs of SwiGLU in FP8 for the backward pass, unscaled. Transformer Engine's alone: refused in emulation.",
        when="fp8_format",
    )
    fp8_wgrad: bool = option(
        True, "Gradients of weights are products in FP8 as well; --no-fp8-wgrad is refused.", read_by_core=True
    )

    @model_validator(mode="after")
    def _refuse_what_nobody_does(self) -> PrecisionArguments:
        if not self.fp8_wgrad:
            raise ValueError(
                "--no-fp8-wgrad: under every precision recipe gradients of weights are products in FP8, and the recipes of "
                "Transformer Engine ignore it in silence. Leave the option out."
            )
        return self
