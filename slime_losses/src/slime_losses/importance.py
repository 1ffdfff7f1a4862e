"""Corrections for tokens that an engine sampled with other probabilities than the trainer's. `--custom-tis-function-path`
chooses one of them under `--use-tis`; `--get-mismatch-metrics` takes their metrics alone.

With d = log π_old - log π_engine of a token, all weights are functions of exp(d), of its product over the sample's
trained tokens, or of its geometric mean over them. They carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slime_core.contracts.loss import LossInputs
from slime_core.errors import ArgumentError
from slime_losses.arguments import LossRunArguments, OffPolicyArguments
from slime_losses.divergence import bounded_exp
from slime_losses.sequences import sequence_mean, sequence_sum

Weights = tuple[Tensor, dict[str, Tensor]]
"""(T,) weights that multiply the policy loss of each token, and metrics."""

Rejecting = tuple[Tensor, dict[str, Tensor], Tensor]
"""The same, and (T,) 0 for the tokens that leave every term of the loss."""

ImportanceWeight = Callable[[LossRunArguments, LossInputs], Weights | Rejecting]
"""What `--custom-tis-function-path` chooses; see `slime_core.contracts.loss.importance_weight`."""


def old_log_probs(inputs: LossInputs) -> Tensor:
    """Return the (T,) log-probs under the weights before the first step of the rollout. Where there is one step alone,
    those are the present ones, without gradient."""
    return inputs.log_probs.detach() if inputs.old_log_probs is None else inputs.old_log_probs


def tis(args: OffPolicyArguments, inputs: LossInputs) -> Weights:
    """Truncate the importance ratio of each token: clamp(exp(d), low, high), low and high being `--tis-clip-low` and `--tis-clip`
    (F. Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training")."""
    ratio = bounded_exp(_difference(inputs))
    return ratio.clamp(args.tis_clip_low, args.tis_clip), _metrics(inputs, ratio, ~_inside(args, ratio))


def icepop(args: OffPolicyArguments, inputs: LossInputs) -> Weights:
    """Take exp(d) where it lies in [`--tis-clip-low`, `--tis-clip`], else 0, so that tokens about which engine and trainer
    disagree are not trained (IcePop: Ring-1T, arXiv 2510.18855)."""
    ratio = bounded_exp(_difference(inputs))
    kept = _inside(args, ratio)
    return torch.where(kept, ratio, torch.zeros_like(ratio)), _metrics(inputs, ratio, ~kept)


def sequence_tis(args: OffPolicyArguments, inputs: LossInputs) -> Weights:
    """Truncate the importance ratio of whole sequences: clamp(Π exp(d), low, high) for all tokens of a sample
    (J. Liu, Y. Li et al. 2025, "When speed kills stability"). Unbiased before truncation, of high variance."""
    ratio = bounded_exp(sequence_sum(_difference(inputs), inputs))
    return ratio.clamp(args.tis_clip_low, args.tis_clip), _metrics(inputs, ratio, ~_inside(args, ratio))


def geometric_mask(args: OffPolicyArguments, inputs: LossInputs) -> Weights:
    """Reject whole sequences by the geometric mean of exp(d) over their tokens: 1 for all tokens of a sample whose
    mean lies in [`--tis-clip-low`, `--tis-clip`], else 0 (same source as `sequence_tis`). Choose a narrow range."""
    ratio = bounded_exp(sequence_mean(_difference(inputs), inputs))
    kept = _inside(args, ratio)
    return kept.to(ratio.dtype), _metrics(inputs, ratio, ~kept)


def _difference(inputs: LossInputs) -> Tensor:
    """Return d of each token, without gradient."""
    if inputs.rollout_log_probs is None:
        raise ArgumentError(
            "--use-tis and --get-mismatch-metrics need the log-probs of the engine, but the samples have no rollout_log_probs. Let the "
            "rollout set them, or leave the option out."
        )
    return old_log_probs(inputs).detach() - inputs.rollout_log_probs


def _inside(args: OffPolicyArguments, ratio: Tensor) -> Tensor:
    return (ratio >= args.tis_clip_low) & (ratio <= args.tis_clip)


def _metrics(inputs: LossInputs, ratio: Tensor, cut: Tensor) -> dict[str, Tensor]:
    return {
        "tis": inputs.measured(ratio),
        "tis_abs": inputs.measured((ratio - 1).abs()),
        "tis_clipfrac": inputs.measured(cut.to(ratio.dtype)),
    }
