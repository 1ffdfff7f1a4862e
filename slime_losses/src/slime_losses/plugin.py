"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_losses.arguments import AdvantageArguments, OffPolicyArguments, OverlongArguments, PolicyArguments

    return [PolicyArguments, AdvantageArguments, OffPolicyArguments, OverlongArguments]


_POLICY = (
    *("eps_clip", "eps_clip_high", "use_kl_loss", "kl_loss_coef", "kl_loss_type?use_kl_loss", "entropy_coef"),
    *(
        "use_unbiased_kl?use_kl_loss",
        "use_opsm",
        "opsm_delta",
        "use_tis",
        "tis_clip",
        "tis_clip_low",
        "get_mismatch_metrics",
    ),
    "custom_pg_loss_reducer_function_path",
)
"""Options that every policy loss reads."""
_SLIMES = "slime.backends.megatron_utils.loss"
"""Where slime has functions that are chosen here by their names there, too."""
_OF_POLICIES = "slime_losses.checks:policy"
_CRITIC = ("value_clip", "critic_loss_type", "critic_load", "critic_lr", "num_critic_only_steps")
_NORMALISING = ("disable_rewards_normalization", "disable_grpo_std_normalization")
_GROUPED = (*_NORMALISING, "normalize_advantages")
_PENALISED = ("kl_coef", "kl_loss_type?kl_coef")


@hookimpl
def slime_losses() -> dict[str, Lazy]:
    def loss(target: str, summary: str, *reads: str, check: str = "") -> Lazy:
        return Lazy(f"slime_losses.{target}", summary, reads_options=reads, check=check)

    return {
        "sft_loss": loss("sft:sft_loss", "negative log-likelihood of the trained tokens"),
        "policy_loss": loss(
            "policy:policy_loss",
            "PPO's clipped surrogate, with KL and entropy terms",
            *_POLICY,
            "eps_clip_c",
            check=_OF_POLICIES,
        ),
        "gspo": loss(
            "gspo:gspo",
            "the clipped surrogate of one ratio per sequence (GSPO)",
            *_POLICY,
            "eps_clip_c",
            check=_OF_POLICIES,
        ),
        "cispo": loss("cispo:cispo", "clipped importance weights on log-probs (CISPO)", *_POLICY, check=_OF_POLICIES),
        "value_loss": loss(
            "value:value_loss",
            "clipped squared error of a critic's values (PPO)",
            *_CRITIC,
            check="slime_losses.checks:critic",
        ),
    }


@hookimpl
def slime_advantages() -> dict[str, Lazy]:
    def estimator(target: str, summary: str, *reads: str) -> Lazy:
        # Those that compare rewards within a group are those that can be told not to.
        check = "slime_losses.checks:groups" if "disable_rewards_normalization" in reads else ""
        return Lazy(f"slime_losses.advantages.{target}", summary, reads_options=reads, check=check)

    baseline = ("disable_rewards_normalization", "normalize_advantages")
    return {
        "grpo": estimator("grpo:grpo", "rewards standardised in their group (GRPO)", *_GROUPED),
        "gspo": estimator("grpo:grpo", "as grpo; policy_loss then takes GSPO's sequence ratio", *_GROUPED),
        "cispo": estimator("grpo:grpo", "as grpo; policy_loss then takes CISPO's clipped weights", *_GROUPED),
        "dr_grpo": estimator("dr_grpo:dr_grpo", "rewards less their group's mean (Dr. GRPO)", *baseline),
        "rloo": estimator("rloo:rloo", "rewards less the mean of the group's others (RLOO)", *baseline),
        "reinforce_plus_plus": estimator(
            "reinforce_plus_plus:reinforce_plus_plus",
            "discounted token rewards, whitened over the batch (REINFORCE++)",
            *("normalize_advantages", *_PENALISED, "gamma"),
        ),
        "reinforce_plus_plus_baseline": estimator(
            "reinforce_plus_plus_baseline:reinforce_plus_plus_baseline",
            "rewards less their group's mean, whitened over the batch",
            *(*baseline, *_PENALISED),
        ),
        "ppo": estimator(
            "ppo:ppo",
            "generalised advantage estimation with a critic (PPO)",
            *("normalize_advantages", *_PENALISED, "gamma", "lambd"),
        ),
    }


@hookimpl
def slime_importance_weights() -> dict[str, Lazy]:
    def weight(name: str, summary: str, *aliases: str) -> Lazy:
        reads = ("tis_clip", "tis_clip_low")
        return Lazy(f"slime_losses.importance:{name}", summary, aliases=aliases, reads_options=reads)

    return {
        "tis": weight("tis", "token ratios, truncated (TIS)", f"{_SLIMES}.vanilla_tis_function"),
        "icepop": weight("icepop", "token ratios, 0 outside a range (IcePop)", f"{_SLIMES}.icepop_function"),
        "sequence_tis": weight("sequence_tis", "ratios of whole sequences, truncated"),
        "geometric_mask": weight("geometric_mask", "whole sequences, rejected by their mean ratio"),
    }


@hookimpl
def slime_reward_post_processes() -> dict[str, Lazy]:
    return {
        "dapo_overlong": Lazy(
            "slime_losses.overlong:dapo_overlong",
            "responses near the length limit lose reward (DAPO)",
            reads_options=("OverlongArguments", "rollout_max_response_len", *_NORMALISING),
        )
    }
