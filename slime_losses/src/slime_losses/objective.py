"""What all policy losses share: off-policy correction, KL and entropy terms, and diagnostics around a surrogate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.errors import ArgumentError
from slime_losses.arguments import LossRunArguments
from slime_losses.divergence import approximate_kl, bounded_exp, needed_for_kl
from slime_losses.importance import ImportanceWeight, old_log_probs, tis
from slime_losses.opsm import left_behind
from slime_losses.reducer import PgLossReducer, reduced
from slime_losses.surrogate import MakeSurrogate


def policy_reads(args: LossRunArguments) -> set[str]:
    """Name what every policy loss reads; entropy and the engine's log-probs are at least reported."""
    common = {"advantages", "old_log_probs", "rollout_log_probs", "entropy"}
    trainer = args.get_mismatch_metrics and args.use_rollout_logprobs
    return common | ({"ref_log_probs"} if args.use_kl_loss else set()) | ({"trainer_log_probs"} if trainer else set())


def has_other_terms(args: LossRunArguments) -> bool:
    """Say whether a token whose advantage is 0 has a gradient, or counts otherwise: a reducer is shown all samples."""
    reducer = args.custom_pg_loss_reducer_function_path
    return bool(args.use_kl_loss and args.kl_loss_coef) or bool(args.entropy_coef) or bool(reducer)


def policy_objective(
    args: LossRunArguments,
    inputs: LossInputs,
    surrogate: MakeSurrogate,
    importance_weight: ImportanceWeight | None,
    pg_loss_reducer: PgLossReducer | None = None,
) -> LossOutputs:
    """Return mean(w · surrogate) - `--entropy-coef` · mean(entropy) + `--kl-loss-coef` · mean(KL to the reference model).

    Args:
        surrogate: makes the loss of each token from its ratio and its advantage. `--use-opsm` leaves some out.
        importance_weight: gives w under `--use-tis`; without that w is 1, and `--get-mismatch-metrics` takes its metrics alone. The
            tokens that it rejects leave all three means and the diagnostics of the loss; the ratio, OPSM's share and its own metrics have all.
        pg_loss_reducer: takes the place of the first of the three means.

    Raises:
        ArgumentError: there are no advantages, or a KL term has no reference log-probs.
    """
    if inputs.advantages is None:
        raise ArgumentError(
            "A policy loss needs advantages, but none were computed; leave out --disable-compute-advantages-and-returns."
        )
    old = old_log_probs(inputs)
    token_loss, log_ratio, clipped = surrogate(args, inputs, inputs.log_probs - old, inputs.advantages)
    log_ratio = log_ratio.detach()
    metrics = {"ratio": inputs.measured(bounded_exp(log_ratio))}
    if args.use_opsm:
        left_out = left_behind(args, inputs, old, inputs.advantages).to(log_ratio.dtype)
        token_loss = token_loss * (1 - left_out)
        metrics["opsm_clipfrac"] = inputs.measured(left_out)
    kept = torch.ones_like(inputs.loss_mask)
    if args.use_tis or args.get_mismatch_metrics:
        weights, found, *rejecting = (importance_weight or tis)(args, _as_trainer(args, inputs))
        metrics |= found
        if args.use_tis:
            token_loss = token_loss * weights
            kept = rejecting[0] if rejecting else kept
    inputs = replace(inputs, reduce=inputs.reduce.over(kept), measured=inputs.measured.over(kept))
    loss = reduced(args, inputs, token_loss, kept, pg_loss_reducer)
    metrics |= {
        "pg_loss": loss.detach(),
        "ppo_kl": inputs.measured(-log_ratio),
        "pg_clipfrac": inputs.measured(clipped.to(log_ratio.dtype)),
    }
    if inputs.entropy is not None:
        metrics["entropy_loss"] = inputs.measured(inputs.entropy.detach())
        if args.entropy_coef:
            loss = loss - args.entropy_coef * inputs.reduce(inputs.entropy)
    if args.use_kl_loss:
        ratio = bounded_exp(inputs.log_probs - old) if args.use_unbiased_kl else None
        kl = approximate_kl(inputs.log_probs, needed_for_kl(inputs.ref_log_probs), args.kl_loss_type, ratio)
        metrics["kl_loss"] = (inputs.reduce if args.kl_loss_coef else inputs.measured)(kl.detach())
        if args.kl_loss_coef:
            loss = loss + args.kl_loss_coef * inputs.reduce(kl)
    return LossOutputs(loss, metrics | _mismatch(args, inputs, old))


def _as_trainer(args: LossRunArguments, inputs: LossInputs) -> LossInputs:
    """The inputs with the trainer's old log-probs, where `--use-rollout-logprobs` makes them the engine's."""
    return replace(inputs, old_log_probs=inputs.trainer_log_probs) if args.use_rollout_logprobs else inputs


def _mismatch(args: LossRunArguments, inputs: LossInputs, old: Tensor) -> dict[str, Tensor]:
    """Measure how far trainer and engine disagree about the same tokens under (nearly) the same weights."""
    if inputs.rollout_log_probs is None:
        return {}
    # Under --use-rollout-logprobs the old log-probs are the engine's own.
    ours = inputs.log_probs.detach() if args.use_rollout_logprobs else old
    return {
        "train_rollout_logprob_abs_diff": inputs.measured((ours - inputs.rollout_log_probs).abs()),
        "train_rollout_kl": inputs.measured(approximate_kl(inputs.rollout_log_probs, ours, "k3")),
    }
