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
        "Refused: training ranks gather weights in the dtype that the optimizer has, not in FP8.",
        read_by_core=True,
    )
    reuse_grad_buf_for_mxfp8_param_ag: bool = option(
        False, "Refused: there is no memory for weights gathered in MXFP8 that gradients could lend.", read_by_core=True
    )
    activation_func_fp8_input_store: bool = option(
        False, "Refused: inputs of activation functions are kept for the backward pass as they are.", read_by_core=True
    )
    fp8_wgrad: bool = option(
        True, "Gradients of weights are products in FP8 as well; --no-fp8-wgrad is refused.", read_by_core=True
    )

    @model_validator(mode="after")
    def _refuse_what_no_backend_does(self) -> PrecisionArguments:
        if found := [why for name, (value, why) in _REFUSED.items() if getattr(self, name) is value]:
            raise ValueError("\n".join(found))
        return self


_REFUSED: dict[str, tuple[bool, str]] = {
    "fp8_param_gather": (
        True,
        "--fp8-param-gather: no train backend gathers weights in FP8. They travel in the dtype that the optimizer has, and are "
        "quantised where they are multiplied: the same numbers, in more memory. Leave the option out.",
    ),
    "reuse_grad_buf_for_mxfp8_param_ag": (
        True,
        "--reuse-grad-buf-for-mxfp8-param-ag: it saves the memory of weights that are gathered in MXFP8, which no train backend "
        "does. Leave the option out.",
    ),
    "activation_func_fp8_input_store": (
        True,
        "--activation-func-fp8-input-store: no train backend keeps inputs of activation functions in FP8 for the backward pass. "
        "Leave the option out; computing activations again saves more memory.",
    ),
    "fp8_wgrad": (
        False,
        "--no-fp8-wgrad: under every precision recipe gradients of weights are products in FP8. Leave the option out.",
    ),
}
