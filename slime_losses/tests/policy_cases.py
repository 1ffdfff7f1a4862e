"""Batches in plain Python, the same as tensors, and the policy losses computed from their papers one token at a time
with Python floats. What the code under test computes on flat tensors is compared with this."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from slime_core.contracts.loss import LossInputs, LossOutputs, Reduce, Responses
from slime_core.sample import Sample
from slime_core.training.batches import Mean, token_weights
from slime_losses.arguments import AdvantageArguments, OffPolicyArguments, OverlongArguments, PolicyArguments

COLUMNS = ("old_log_probs", "ref_log_probs", "rollout_log_probs", "advantages", "entropy", "returns", "old_values")


def arguments(**changes: Any) -> SimpleNamespace:
    """The defaults of this distribution's options and of those of the core that it reads, with `changes`."""
    groups = (PolicyArguments, AdvantageArguments, OffPolicyArguments, OverlongArguments)
    own = {name: value for group in groups for name, value in group().model_dump().items()}
    core = {
        "advantage_estimator": "grpo",
        "custom_advantage_function_path": None,
        "use_tis": False,
        "get_mismatch_metrics": False,
        "custom_pg_loss_reducer_function_path": None,
        "calculate_per_token_loss": False,
        "use_rollout_logprobs": False,
        "rollout_max_response_len": 1024,
        "reward_key": None,
    }
    return SimpleNamespace(**{**own, **core, **changes})


@dataclass
class Row:
    """The tokens of one sample."""

    mask: list[int]
    log_probs: list[float]
    columns: dict[str, list[float]]


def rows(seed: int, lengths: Sequence[int] = (3, 5, 1, 4), spread: float = 0.3) -> list[Row]:
    """Samples with random values, some tokens masked; all log-ratios are of the order of `spread`."""
    draw = random.Random(seed)
    made = []
    for length in lengths:
        log_probs = [-0.05 - draw.expovariate(1.0) for _ in range(length)]
        columns = {name: [lp + draw.gauss(0, spread) for lp in log_probs] for name in COLUMNS[:3]}
        columns |= {name: [draw.gauss(0, 1) for _ in range(length)] for name in COLUMNS[3:]}
        made.append(Row([int(length == 1 or draw.random() < 0.8) for _ in range(length)], log_probs, columns))
    return made


def samples_of(batch: Sequence[Row]) -> list[Sample]:
    """The samples that the rows are responses of, each behind a prompt of one token."""
    return [Sample(tokens=[0] * (len(r.mask) + 1), response_length=len(r.mask), loss_mask=r.mask) for r in batch]


def weights_of(batch: Sequence[Row], mean: Mean) -> list[float]:
    """The weight of each sample's trained tokens, as the core gives it."""
    return token_weights(samples_of(batch), mean, 7.0)


def loss_inputs(
    batch: Sequence[Row],
    weights: Sequence[float],
    chosen: Sequence[int] | None = None,
    divisor: float = 1.0,
    **changes: Any,
) -> LossInputs:
    """One micro-batch of the samples numbered `chosen` (all by default), float64."""
    chosen = range(len(batch)) if chosen is None else chosen
    picked = [batch[i] for i in chosen]

    def flat(values: Sequence[Sequence[float]]) -> torch.Tensor:
        return torch.tensor([x for row in values for x in row], dtype=torch.float64)

    reduce = Reduce(flat([[weights[i] * m for m in batch[i].mask] for i in chosen]))
    fields: dict[str, Any] = {name: flat([row.columns[name] for row in picked]) for name in COLUMNS}
    fields |= {
        "log_probs": flat([row.log_probs for row in picked]).requires_grad_(),
        "loss_mask": flat([row.mask for row in picked]),
        "sample_index": torch.tensor([s for s, row in enumerate(picked) for _ in row.mask], dtype=torch.int64),
        "reduce": reduce,
        "measured": reduce,
        "responses": Responses(samples_of(picked), divisor),
    }
    return LossInputs(**{**fields, **changes})


def gradient(outputs: LossOutputs, leaf: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(outputs.loss, leaf)
    return found


# ----------------------------------------------------------------------------------------------- from the papers


def clamp(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def kl_reference(log_p: float, log_base: float, kind: str, weight: float = 1.0) -> float:
    """`weight`: of the probability of p over that of the policy that sampled the token."""
    ratio = math.exp(log_base - log_p)
    k3 = weight * (ratio - 1 - math.log(ratio))
    k1, k2 = weight * math.log(1 / ratio), weight * math.log(ratio) ** 2 / 2
    return {"k1": k1, "k2": k2, "k3": k3, "low_var_kl": clamp(k3, -10, 10)}[kind]


def weight_reference(args: Any, row: Row, t: int) -> float:
    """The importance weight of token t, for the rule that `args.rule` names."""
    ratios = [
        math.exp(o - e) for o, e in zip(row.columns["old_log_probs"], row.columns["rollout_log_probs"], strict=True)
    ]
    trained = [r for r, m in zip(ratios, row.mask, strict=True) if m]
    low, high = args.tis_clip_low, args.tis_clip
    mean = math.prod(trained) ** (1 / len(trained))
    return {
        "tis": clamp(ratios[t], low, high),
        "icepop": ratios[t] if low <= ratios[t] <= high else 0.0,
        "sequence_tis": clamp(math.prod(trained), low, high),
        "geometric_mask": 1.0 if low <= mean <= high else 0.0,
    }[args.rule]


def policy_reference(
    args: Any, batch: Sequence[Row], weights: Sequence[float], moved: Sequence[Sequence[float]] | None = None
) -> dict[str, float]:
    """Loss and metrics.

    Args:
        moved: log-probs to take wherever a gradient flows; those of the batch stay wherever it does not. Differences of
            the loss in `moved` are the gradient.
    """
    moved = moved or [row.log_probs for row in batch]
    high = 1 + (args.eps_clip if args.eps_clip_high is None else args.eps_clip_high)
    low = 1 - args.eps_clip
    total = dict.fromkeys(("loss", "pg_loss", "kl_loss", "entropy_loss", "ppo_kl", "ratio", "pg_clipfrac"), 0.0)
    total |= {"train_rollout_logprob_abs_diff": 0.0, "train_rollout_kl": 0.0}
    if args.use_opsm:
        total["opsm_clipfrac"] = 0.0
    for row, now, weight in zip(batch, moved, weights, strict=True):
        trained = [t for t, m in enumerate(row.mask) if m]
        old = row.columns["old_log_probs"]
        moved_away = sum(old[t] - row.log_probs[t] for t in trained) / max(1, len(trained))
        for t in trained:
            advantage = row.columns["advantages"][t]
            clipped = False
            if args.advantage_estimator == "cispo":
                ratio = math.exp(row.log_probs[t] - old[t])
                loss = -clamp(ratio, low, high) * advantage * now[t]
                clipped = not low <= ratio <= high
            else:
                ratio = math.exp(now[t] - old[t])
                if args.advantage_estimator == "gspo":
                    ratio = math.prod(math.exp(now[u] - old[u]) for u in trained) ** (1 / len(trained))
                objective = min(ratio * advantage, clamp(ratio, low, high) * advantage)
                clipped = clamp(ratio, low, high) * advantage < ratio * advantage
                if args.eps_clip_c is not None and advantage < 0:
                    objective = max(objective, args.eps_clip_c * advantage)
                loss = -objective
            loss *= weight_reference(args, row, t) if args.use_tis else 1.0
            if args.use_opsm and advantage < 0 and moved_away > args.opsm_delta:
                loss = 0.0
                total["opsm_clipfrac"] += weight
            behaviour = math.exp(now[t] - old[t]) if args.use_unbiased_kl else 1.0
            kl = kl_reference(now[t], row.columns["ref_log_probs"][t], args.kl_loss_type, behaviour)
            entropy, engine = row.columns["entropy"][t], row.columns["rollout_log_probs"][t]
            total["pg_loss"] += weight * loss
            total["kl_loss"] += weight * kl
            total["entropy_loss"] += weight * entropy
            total["loss"] += weight * (loss - args.entropy_coef * entropy)
            total["loss"] += weight * args.kl_loss_coef * kl if args.use_kl_loss else 0.0
            total["ratio"] += weight * ratio
            total["ppo_kl"] += weight * -math.log(ratio)
            total["pg_clipfrac"] += weight * clipped
            ours = row.log_probs[t] if args.use_rollout_logprobs else old[t]
            total["train_rollout_logprob_abs_diff"] += weight * abs(ours - engine)
            total["train_rollout_kl"] += weight * kl_reference(engine, ours, "k3")
    if not args.use_kl_loss:
        del total["kl_loss"]
    return total
