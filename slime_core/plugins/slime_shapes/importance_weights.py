"""Corrections of slime: `(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, …) -> (pg_loss, loss_masks, metrics)`.

What such a function makes of a loss of 1 for every token are the weights, the same that it would give any loss: slime's functions
scale. The masks that it returns say which tokens are kept.

slime calls none for a micro-batch without tokens. Here it is called for a placeholder, which counts nowhere, so that the names of its
metrics are known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_core.plugins.slime_shapes.parameters import in_place_of, parameters

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments
    from slime_core.contracts.loss import LossInputs


def made_to_fit(component: Any) -> Any:
    """Return the function with the contract `slime_core.contracts.loss.importance_weight` for one of slime's shape."""
    if not {"pg_loss", "train_log_probs"} <= parameters(component).keys():
        return component

    @in_place_of(component)
    def weights(args: RunArguments, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return _weights(component, args, inputs)

    return weights


def _weights(function: Any, args: RunArguments, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    import torch

    if inputs.rollout_log_probs is None:
        raise PluginError("The samples of this rollout have no rollout_log_probs, which a correction compares with.")
    if not len(inputs.loss_mask):
        scaled, found, kept = _weights(function, args, _placeholder(inputs))
        return scaled[:0], found, kept[:0]
    lengths = torch.unique_consecutive(inputs.sample_index, return_counts=True)[1].tolist()

    def by_sample(values: Tensor) -> list[Tensor]:
        return list(torch.split(values, lengths))

    old = inputs.log_probs if inputs.old_log_probs is None else inputs.old_log_probs
    scaled, masks, metrics = function(
        args=args,
        pg_loss=torch.ones_like(inputs.loss_mask, dtype=old.dtype),
        train_log_probs=by_sample(old.detach()),
        rollout_log_probs=by_sample(inputs.rollout_log_probs),
        loss_masks=by_sample(inputs.loss_mask),
        total_lengths=lengths,
        response_lengths=lengths,
    )
    found = {name: inputs.measured(_flat(value)) for name, value in metrics.items()}
    return scaled.detach(), found, torch.cat([mask.to(scaled) for mask in masks]).detach()


def _placeholder(inputs: LossInputs) -> LossInputs:
    """One token on which engine and trainer agree, which has no weight in any mean."""
    zero = inputs.loss_mask.new_zeros(1)
    return replace(
        inputs,
        log_probs=zero,
        old_log_probs=zero,
        rollout_log_probs=zero,
        loss_mask=zero + 1,
        sample_index=inputs.sample_index.new_zeros(1),
    )


def _flat(value: Any) -> Tensor:
    """A metric, one number for each token or one for all; slime has it also as a list of one tensor for each sample."""
    import torch

    tensor = torch.cat(list(value)) if isinstance(value, (list, tuple)) else torch.as_tensor(value)
    return tensor.detach().float()
