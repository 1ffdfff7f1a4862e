"""Options of losses, advantage estimators and off-policy corrections, under slime's names and with its defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from slime_core.arguments import RunArguments
from slime_core.arguments.groups.rollout import RolloutArguments
from slime_core.arguments.groups.training import TrainArguments
from slime_core.contracts.options import ArgumentGroup, option


class PolicyArguments(ArgumentGroup):
    """Policy loss"""

    eps_clip: float = option(0.2, "Smallest ratio of new to old probability: 1 less this. 1 or more: no limit.", ge=0)
    eps_clip_high: float | None = option(
        None, "Largest ratio: 1 plus this (DAPO's clip-higher). Default: --eps-clip.", ge=0
    )
    eps_clip_c: float | None = option(
        None,
        "Limit the loss of tokens with negative advantages to so many times their advantage (dual clip).",
        gt=1,
    )
    use_kl_loss: bool = option(
        False, "Measure the KL divergence from the reference model; --kl-loss-coef makes it part of the loss."
    )
    kl_loss_coef: float = option(0.0, "Weight of the KL divergence in the loss.", ge=0, when="use_kl_loss")
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = option(
        "k1",
        "How KL divergences are estimated from log-probs; low_var_kl is k3 limited to ±10.",
    )
    use_unbiased_kl: bool = option(
        False,
        "Weigh the KL divergence of each token in the loss by its ratio of new to old probability, so that its gradient estimates that "
        "of the KL whatever policy sampled the tokens (DeepSeek-V3.2).",
        when="use_kl_loss",
    )
    use_opsm: bool = option(
        False,
        "Leave sequences of negative advantage out of the policy loss that the policy has moved away from by more than "
        "--opsm-delta (off-policy sequence masking, DeepSeek-V3.2).",
    )
    opsm_delta: float = option(
        1e-4,
        "How far, as the mean of log(old / new probability) over a sequence's trained tokens, with --use-opsm.",
        ge=0,
        when="use_opsm",
    )
    entropy_coef: float = option(0.0, "Weight of the entropy of the policy, which is rewarded.", ge=0)
    value_clip: float = option(
        0.2,
        "How far a critic's values may move in one rollout before they are clipped.",
        ge=0,
    )

    @model_validator(mode="after")
    def _check_policy_loss(self) -> PolicyArguments:
        cispo = isinstance(self, TrainArguments) and "cispo" in (self.advantage_estimator, self.loss_type)
        if self.eps_clip_high is not None and self.eps_clip_high < self.eps_clip and not cispo:
            raise ValueError(
                f"--eps-clip-high {self.eps_clip_high} is below --eps-clip {self.eps_clip}; it must be at least as high. "
                "Lower --eps-clip, or leave --eps-clip-high out for a symmetric range."
            )
        if self.eps_clip_c is not None and cispo:
            raise ValueError("--eps-clip-c has no meaning for CISPO, which clips weights, not losses; leave it out.")
        return self


class AdvantageArguments(ArgumentGroup):
    """Advantages"""

    disable_rewards_normalization: bool = option(
        False, "Take rewards as they are, without comparing them in their group."
    )
    disable_grpo_std_normalization: bool = option(
        False,
        "Do not divide by the group's standard deviation (Dr. GRPO).",
        when="!disable_rewards_normalization",
    )
    normalize_advantages: bool = option(
        False,
        "Whiten the advantages over all trained tokens of the rollout. The reinforce_plus_plus estimators always do.",
    )
    kl_coef: float = option(0.0, "Weight of the KL divergence from the reference model in the rewards.", ge=0)
    gamma: float = option(1.0, "Discount of later rewards, per token.", ge=0, le=1)
    lambd: float = option(
        1.0,
        "λ of generalised advantage estimation; 1 trusts rewards, 0 the critic.",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _check_kl_in_one_place(self) -> AdvantageArguments:
        if isinstance(self, PolicyArguments) and self.kl_coef and self.use_kl_loss and self.kl_loss_coef:
            raise ValueError(
                f"--kl-coef {self.kl_coef} takes the KL divergence off the rewards and --kl-loss-coef {self.kl_loss_coef} "
                "adds it to the loss; give only one of them."
            )
        return self


class OffPolicyArguments(ArgumentGroup):
    """Difference between engine and trainer"""

    tis_clip: float = option(
        2.0,
        "Upper limit for ratios of the trainer's to the engine's probability, with --use-tis.",
        gt=0,
        when="use_tis|get_mismatch_metrics",
    )
    tis_clip_low: float = option(
        0.0,
        "Lower limit for ratios of the trainer's to the engine's probability, with --use-tis.",
        ge=0,
        when="use_tis|get_mismatch_metrics",
    )

    @model_validator(mode="after")
    def _check_tis(self) -> OffPolicyArguments:
        if self.tis_clip_low >= self.tis_clip:
            raise ValueError(f"--tis-clip-low {self.tis_clip_low} must be less than --tis-clip {self.tis_clip}.")
        if isinstance(self, TrainArguments) and self.use_tis and self.use_rollout_logprobs:
            raise ValueError(
                "--use-tis and --use-rollout-logprobs both correct for the difference between engine and trainer; with "
                "the latter there is none left to weigh. Give only one of them."
            )
        return self


class OverlongArguments(ArgumentGroup):
    """Penalty for overlong responses (--custom-reward-post-process-path dapo_overlong)"""

    overlong_buffer_len: int = option(
        4096, "Tokens before --rollout-max-response-len over which the penalty grows.", ge=1
    )
    overlong_penalty_factor: float = option(1.0, "Penalty of a response at the limit.", ge=0)

    @model_validator(mode="after")
    def _check_overlong(self) -> OverlongArguments:
        if not isinstance(self, TrainArguments) or self.custom_reward_post_process_path not in _OVERLONG_PATHS:
            return self
        if isinstance(self, RolloutArguments) and self.overlong_buffer_len > self.rollout_max_response_len:
            limit = self.rollout_max_response_len
            raise ValueError(
                f"--overlong-buffer-len {self.overlong_buffer_len} is longer than --rollout-max-response-len {limit}; "
                f"it must be at most as long. Try --overlong-buffer-len {max(1, limit // 4)}."
            )
        if not self.disable_compute_advantages_and_returns and (problem := unknown_to_overlong(self)):
            raise ValueError(problem)
        return self


_OVERLONG_PATHS = ("dapo_overlong", "slime_losses.overlong.dapo_overlong", "slime_losses.overlong:dapo_overlong")
OVERLONG_ESTIMATORS = (
    *("grpo", "gspo", "cispo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"),
    "ppo",
)
"""The advantage estimators for which `dapo_overlong` shapes rewards: it knows what they make of rewards."""


def unknown_to_overlong(args: TrainArguments) -> str:
    """Say why `dapo_overlong` cannot shape rewards for the run's advantage estimator; "" if it can."""
    own = args.custom_advantage_function_path
    if (own or args.advantage_estimator) in OVERLONG_ESTIMATORS:
        return ""
    given = f"--custom-advantage-function-path {own}" if own else f"--advantage-estimator {args.advantage_estimator}"
    return (
        "dapo_overlong normalises rewards in place of the advantage estimator, and does not know how the one of "
        f"{given} does it. It shapes rewards for {', '.join(OVERLONG_ESTIMATORS)}. Choose one of these, or shape the "
        "rewards in your estimator."
    )


class LossRunArguments(RunArguments, PolicyArguments, AdvantageArguments, OffPolicyArguments, OverlongArguments):
    """The run's options with those of this package, for type checkers."""
