"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_fp8.arguments import DelayedScalingArguments

    return [DelayedScalingArguments]


@hookimpl
def slime_precision_recipes() -> dict[str, Lazy]:
    def recipe(target: str, summary: str, *reads: str) -> Lazy:
        ends = tuple(f"num_layers_at_{end}_in_bf16?first_last_layers_bf16" for end in ("start", "end"))
        shared = ("fp8_format", "first_last_layers_bf16", *ends, "fp8_modules_to_not_convert")
        return Lazy(f"slime_fp8.recipes.{target}", summary, reads_options=(*shared, *reads))

    return {
        "tensorwise": recipe("tensorwise:Tensorwise", "one scale for each tensor, from its own largest magnitude"),
        "delayed": recipe(
            "delayed:Delayed", "one scale for each tensor, from earlier steps", "DelayedScalingArguments"
        ),
        "blockwise": recipe("blockwise:Blockwise", "weights in blocks of 128 × 128, activations of 1 × 128"),
        "mxfp8": recipe("mxfp8:Mxfp8", "blocks of 32, with scales that are powers of two (Blackwell)"),
    }


@hookimpl
def slime_checkpoint_formats() -> dict[str, Lazy]:
    def format(summary: str) -> Lazy:
        return Lazy("slime_fp8.checkpoint_format:Fp8Format", summary, reads_options=())

    return {
        "fp8": format("FP8 in blocks, as DeepSeek's and Qwen's"),
        "mxfp8": format("MXFP8, blocks of 32"),
        "compressed-tensors": format("FP8 with a scale for each row or tensor (compressed-tensors, float-quantized)"),
    }


@hookimpl
def slime_checkpoint_conversions() -> dict[str, Lazy]:
    return {
        "hf-to-fp8": Lazy("slime_fp8.commands:hf_to_fp8", "a Hugging Face checkpoint into one in FP8"),
        "fp8-to-hf": Lazy("slime_fp8.commands:fp8_to_hf", "an FP8 checkpoint into an ordinary one"),
    }
