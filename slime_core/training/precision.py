"""The precision recipe of a run, as train backends meet it: made for a model, and what follows from the options alone. Called by
backends that compute in FP8. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from slime_core.contracts.precision import PrecisionRecipe, Remembers
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.train_backend import Role
    from slime_core.training.components import TrainComponents


def recipe_of(
    args: RunArguments, components: TrainComponents | None, num_layers: int, role: Role
) -> PrecisionRecipe | None:
    """Make the recipe of the run for a model; None without `--fp8-format`.

    Args:
        components: those of the run, with the recipe among them.
        num_layers: of the model.

    Raises:
        ArgumentError: the recipe cannot compute a model in this role, or there is none.
    """
    if not args.fp8_format:
        return None
    chosen = components.further.get("precision_recipe") if components is not None else None
    if chosen is None:
        raise ArgumentError(
            f"--fp8-format {args.fp8_format}: the train backend was made without a precision recipe. Give it the run's "
            "`components`, as `slime train` does, or leave --fp8-format out."
        )
    recipe: PrecisionRecipe = chosen(args, num_layers)
    if role == "reference" and isinstance(recipe.linear("probe.weight"), Remembers):
        raise ArgumentError(
            f"--fp8-recipe {args.fp8_recipe}: its scales come from training steps, and a reference model takes none, so it would "
            "compute everything with the scale 1. Give another --fp8-recipe, or a loss and an estimator without a reference "
            "model."
        )
    return recipe


def refused_with_adapters(args: RunArguments) -> Iterator[str]:
    """One sentence if adapters are to be trained in FP8."""
    if args.fp8_format and args.lora_rank:
        yield (
            f"--fp8-format {args.fp8_format} with --lora-rank {args.lora_rank}: an adapter would be trained beside weights in FP8 "
            "and then merged into ones that are not. Leave one of the two out."
        )


def refused_in_emulation(args: RunArguments) -> Iterator[str]:
    """One sentence for every option of FP8 that has a meaning on hardware alone. Weights are gathered, and activations kept, in the
    numbers that they have, so there is nothing that these options could save."""
    given = {
        "--fp8-param-gather": args.fp8_param_gather,
        "--reuse-grad-buf-for-mxfp8-param-ag": args.reuse_grad_buf_for_mxfp8_param_ag,
        "--activation-func-fp8-input-store": args.activation_func_fp8_input_store,
    }
    for option in (option for option, value in given.items() if value):
        yield f"{option}: {_IN_EMULATION[option]} Leave the option out."


_IN_EMULATION = {
    "--fp8-param-gather": (
        "no weights are gathered in FP8 here. They travel in the dtype that the optimizer has, and are quantised where they are "
        "multiplied: the same numbers, in more memory. Transformer Engine has it, with --train-backend megatron."
    ),
    "--reuse-grad-buf-for-mxfp8-param-ag": (
        "it saves the memory of weights that are gathered in MXFP8, and none are here. Transformer Engine has it, with "
        "--train-backend megatron."
    ),
    "--activation-func-fp8-input-store": (
        "inputs of activation functions are kept for the backward pass as they are. Transformer Engine has it, with --train-backend "
        "megatron; computing activations again saves more memory."
    ),
}
