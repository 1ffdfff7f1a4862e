"""Turns numbers of samples into numbers of tokens, and sums along tokens: what advantage estimators share.

Everything here works on the *trained* tokens of a rollout alone, sample after sample. Untrained tokens (the answers of
tools) get no reward and no advantage, and time does not pass while they go by: the token after a trained token is the
next trained one. M is the number of trained tokens; `owner` (M int64) says which sample each of them belongs to.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.arguments import AdvantageArguments, LossRunArguments
from slime_losses.divergence import approximate_kl, needed_for_kl


def trained(inputs: AdvantageInputs, values: Tensor) -> Tensor:
    """Pick the values of the M trained tokens from those of all T response tokens."""
    return values.masked_select(inputs.trained)


def of_samples(args: AdvantageArguments, inputs: AdvantageInputs, values: Tensor) -> AdvantageOutputs:
    """Give every trained token the number of its sample, with 0 elsewhere; whitened as `outputs` says.

    Args:
        values: (S,) one for each sample.
    """
    if args.normalize_advantages:
        return outputs(args, inputs, trained(inputs, values.index_select(0, inputs.sample_index)))
    found = torch.zeros(inputs.trained.shape, dtype=values.dtype)
    spread, mask = found.numpy(), inputs.trained.numpy()
    numbers, lengths = values.numpy(), inputs.lengths.numpy()
    ends = lengths.cumsum()
    first = begin = 0
    while first < len(lengths):  # block by block, so that what is made on the way stays in the processor's cache
        last = max(first + 1, int(ends.searchsorted(begin + _BLOCK)))
        end = int(ends[last - 1])
        np.copyto(spread[begin:end], numbers[first:last].repeat(lengths[first:last]), where=mask[begin:end])
        first, begin = last, end
    return AdvantageOutputs(found)


_BLOCK = 1 << 15
"""Tokens that are given their numbers together."""


def outputs(
    args: AdvantageArguments,
    inputs: AdvantageInputs,
    advantages: Tensor,
    returns: Tensor | None = None,
    whiten: bool = False,
) -> AdvantageOutputs:
    """Put the values of the M trained tokens among the T response tokens, with 0 elsewhere.

    The advantages are whitened under `--normalize-advantages`, or if `whiten`.
    """
    if args.normalize_advantages or whiten:
        advantages = whitened(advantages)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(inputs.trained.shape).masked_scatter_(inputs.trained, values)

    return AdvantageOutputs(spread(advantages), None if returns is None else spread(returns))


def whitened(values: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(variance + 1e-8), variance with M - 1 in its denominator. Equal values give exactly 0."""
    if not len(values):
        return values
    above = values - values.min()
    deviation = above - above.mean()
    variance = deviation.square().sum() / max(1, len(values) - 1)
    return deviation / (variance + 1e-8).sqrt()


def kl_penalty_reads(args: AdvantageArguments) -> set[str]:
    """Name the log-probs that `kl_penalty` needs, for `slime_core.contracts.loss.reads`."""
    return {"old_log_probs", "ref_log_probs"} if args.kl_coef else set()


def kl_penalty(args: LossRunArguments, inputs: AdvantageInputs) -> Tensor:
    """Return `--kl-coef` times the KL to the reference model (`--kl-loss-type`), for each trained token.

    Raises:
        ArgumentError: log-probs are missing.
    """
    if not args.kl_coef:
        return inputs.rewards.new_zeros(int(inputs.trained.sum()))
    log_probs = trained(inputs, needed_for_kl(inputs.log_probs))
    reference = trained(inputs, needed_for_kl(inputs.ref_log_probs))
    return args.kl_coef * approximate_kl(log_probs, reference, args.kl_loss_type)


def token_rewards(args: LossRunArguments, inputs: AdvantageInputs, owner: Tensor) -> Tensor:
    """Return minus the KL penalty of each trained token; the last one of each sample also has the sample's reward."""
    last = torch.ones_like(owner, dtype=torch.bool)
    last[:-1] = owner[1:] != owner[:-1]
    return torch.where(last, inputs.rewards[owner], 0.0) - kl_penalty(args, inputs)


def following(values: Tensor, owner: Tensor, distance: int = 1) -> Tensor:
    """Return for each trained token the value `distance` tokens later in the same sample, 0 beyond its end."""
    later = torch.zeros_like(values)
    same = owner[distance:] == owner[:-distance]
    later[:-distance] = torch.where(same, values[distance:], 0.0)
    return later


def discounted_sums(values: Tensor, owner: Tensor, factor: float) -> Tensor:
    """Return x_t + factor · x_{t+1} + factor² · x_{t+2} + … to the end of each sample.

    The number of terms doubles in every round, so the rounds are as many as the longest sample's length has bits.
    """
    longest = int(torch.bincount(owner).max()) if len(owner) else 0
    distance = 1
    while distance < longest:
        values = values + factor**distance * following(values, owner, distance)
        distance *= 2
    return values
