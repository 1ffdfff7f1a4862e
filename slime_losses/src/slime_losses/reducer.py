"""`--custom-pg-loss-reducer-function-path`: how the policy loss of tokens becomes one number. Called by
`slime_losses.objective`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slime_core.contracts.loss import LossInputs
from slime_core.contracts.results import shape_of
from slime_core.errors import ArgumentError, PluginError
from slime_core.token_arrays import flat_arrays, num_tokens, trained
from slime_losses.arguments import LossRunArguments

PgLossReducer = Callable[[list[int], list[int], list[Tensor], bool], Callable[[Tensor], Tensor]]
"""See `slime_core.contracts.loss.pg_loss_reducer`."""


def reduced(
    args: LossRunArguments, inputs: LossInputs, token_loss: Tensor, kept: Tensor, reducer: PgLossReducer | None
) -> Tensor:
    """Return this micro-batch's share of the policy loss: the mean of the (T,) losses of tokens, or what the reducer makes of them
    and of the (T,) mask of those that are `kept`, over `Responses.divisor`.

    Raises:
        ArgumentError: the train backend does not tell whole responses.
        PluginError: the reducer made no number with a gradient.
    """
    if reducer is None:
        return inputs.reduce(token_loss)
    if inputs.responses is None:
        raise ArgumentError(
            "--custom-pg-loss-reducer-function-path needs whole responses, which this train backend does not give to a loss "
            "(LossInputs.responses). Leave the option out, or choose another --train-backend."
        )
    samples = inputs.responses.samples
    if not samples:  # slime calls no reducer then
        return inputs.reduce(token_loss)
    lengths = [sample.response_length for sample in samples]
    mask = torch.from_numpy(flat_arrays(map(trained, samples))).to(token_loss)

    def in_responses(values: Tensor) -> Tensor:
        return torch.zeros_like(mask).masked_scatter(mask > 0, values[inputs.loss_mask > 0].to(mask))

    reduce = reducer(
        [num_tokens(sample) for sample in samples],
        lengths,
        list(torch.split(in_responses(kept), lengths)),
        args.calculate_per_token_loss,
    )
    loss = reduce(in_responses(token_loss))
    if getattr(loss, "shape", None) != () or (token_loss.requires_grad and len(token_loss) and not loss.requires_grad):
        raise PluginError(
            f"What --custom-pg-loss-reducer-function-path {args.custom_pg_loss_reducer_function_path} returned made {shape_of(loss)} of the "
            "losses of a micro-batch; expected a tensor with one number, computed from them without detach or item."
        )
    return loss / inputs.responses.divisor
