"""FP8: the model's linear layers compute by the run's precision recipe, by the arithmetic of the GPU or, with --fp8-emulation, in
emulation on any device. Called by the backend.

Weights, gradients and the optimizer's state stay float32, and keep their names: what is saved, exported or sent to an engine is
what the optimizer has. A recipe is met through its contract alone (`slime_core.contracts.precision`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from slime_core.contracts.precision import Hardware, PrecisionRecipe
from slime_core.contracts.train_backend import Role, TrainBatch
from slime_core.remote_code import load_configuration
from slime_core.runtime.hardware import hardware_of
from slime_core.tensors.low_precision import end_step, nothing_remembered, remembering, swap_linears, weights_unchanged
from slime_core.tensors.ranks import Ranks
from slime_core.token_arrays import num_trained
from slime_core.training.precision import recipe_of
from slime_torch.arguments import TorchRunArguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from slime_core.training.components import TrainComponents


def require_recipe(
    args: TorchRunArguments, components: TrainComponents | None, folder: str, role: Role, device: torch.device
) -> None:
    """Refuse what cannot be computed on a device of the checkpoint in `folder`, before its weights are loaded.

    Raises:
        ArgumentError: see `slime_core.training.precision.recipe_of` and `PrecisionRecipe.hardware_linear`.
    """
    if not args.fp8_format:
        return
    try:
        config = load_configuration(folder)
    except (OSError, ValueError, KeyError):  # who loads the weights says what is wrong
        return
    recipe, hardware = recipe_of(args, components, layers_of(config), role), computing(args, device)
    if recipe is not None and hardware is not None:
        recipe.hardware_linear("probe.weight", hardware)


def computing(args: TorchRunArguments, device: torch.device) -> Hardware | None:
    """Whose arithmetic computes FP8 on a device; None: it is emulated."""
    return None if args.fp8_emulation else hardware_of(device)


def layers_of(config: PretrainedConfig) -> int:
    """How many layers the language model has."""
    return int(config.get_text_config().num_hidden_layers)


class LowPrecision:
    """The products of a model that a recipe computes.

    Args:
        model: is changed: the linear layers that the recipe quantises compute by it.
        recipe: None: nothing is changed.
        hardware: whose arithmetic computes; None: it is emulated.
        keep: quantised weights are kept inside of `unchanged`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: PrecisionRecipe | None,
        hardware: Hardware | None = None,
        keep: bool = True,
    ) -> None:
        self._model: nn.Module = model
        self._keeps = keep and recipe is not None
        if recipe is not None:
            swap_linears(model, recipe, hardware)
        self._remembering = remembering(model)

    def unchanged(self) -> AbstractContextManager[None]:
        """The context of computations between which no weight changes."""
        return weights_unchanged(self._model) if self._keeps else nullcontext()

    def noted(self, batch: TrainBatch, micro_batch: Sequence[int]) -> AbstractContextManager[None]:
        """The context of a micro-batch's forward and backward pass: one without a trained token, for which a rank computes
        something that does not count, leaves no trace in the scales of later steps."""
        if not self._remembering or any(num_trained(batch.samples[number]) for number in micro_batch):
            return nullcontext()
        return nothing_remembered(self._model)

    def end_step(self, ranks: Ranks) -> None:
        """An optimizer step was taken. All ranks call this at the same time."""
        end_step(self._remembering, ranks.largest)
