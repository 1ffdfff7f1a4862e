"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.arguments import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_losses.arguments import AdvantageArguments, OffPolicyArguments, OverlongArguments, PolicyArguments

    return [PolicyArguments, AdvantageArguments, OffPolicyArguments, OverlongArguments]


@hookimpl
def slime_losses() -> dict[str, Lazy]:
    return {
        "sft_loss": Lazy("slime_losses.sft:sft_loss", "negative log-likelihood of the trained tokens"),
        "policy_loss": Lazy("slime_losses.policy:policy_loss", "PPO's clipped surrogate, with KL and entropy terms"),
        "gspo": Lazy("slime_losses.gspo:gspo", "the clipped surrogate of one ratio per sequence (GSPO)"),
        "cispo": Lazy("slime_losses.cispo:cispo", "clipped importance weights on log-probs (CISPO)"),
        "value_loss": Lazy("slime_losses.value:value_loss", "clipped squared error of a critic's values (PPO)"),
    }


@hookimpl
def slime_advantages() -> dict[str, Lazy]:
    grpo = "slime_losses.advantages.grpo:grpo"
    reinforce = "slime_losses.advantages.reinforce_plus_plus"
    return {
        "grpo": Lazy(grpo, "rewards standardised in their group (GRPO)"),
        "gspo": Lazy(grpo, "as grpo; policy_loss then takes GSPO's sequence ratio"),
        "cispo": Lazy(grpo, "as grpo; policy_loss then takes CISPO's clipped weights"),
        "dr_grpo": Lazy("slime_losses.advantages.dr_grpo:dr_grpo", "rewards less their group's mean (Dr. GRPO)"),
        "rloo": Lazy("slime_losses.advantages.rloo:rloo", "rewards less the mean of the group's others (RLOO)"),
        "reinforce_plus_plus": Lazy(
            f"{reinforce}:reinforce_plus_plus", "discounted token rewards, whitened over the batch (REINFORCE++)"
        ),
        "reinforce_plus_plus_baseline": Lazy(
            f"{reinforce}:reinforce_plus_plus_baseline", "rewards less their group's mean, whitened over the batch"
        ),
        "ppo": Lazy("slime_losses.advantages.ppo:ppo", "generalised advantage estimation with a critic (PPO)"),
    }


@hookimpl
def slime_importance_weights() -> dict[str, Lazy]:
    module = "slime_losses.importance"
    return {
        "tis": Lazy(f"{module}:tis", "token ratios, truncated (TIS)"),
        "icepop": Lazy(f"{module}:icepop", "token ratios, 0 outside a range (IcePop)"),
        "sequence_tis": Lazy(f"{module}:sequence_tis", "ratios of whole sequences, truncated"),
        "geometric_mask": Lazy(f"{module}:geometric_mask", "whole sequences, rejected by their mean ratio"),
    }


@hookimpl
def slime_reward_post_processes() -> dict[str, Lazy]:
    return {
        "dapo_overlong": Lazy(
            "slime_losses.overlong:dapo_overlong", "responses near the length limit lose reward (DAPO)"
        )
    }
