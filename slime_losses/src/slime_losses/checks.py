"""What losses and estimators see of a run before it starts: that it would learn nothing from its rewards, or from its KL term.

Named by the plugin (`slime_core.contracts.checking`). Imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.checking import Checking

if TYPE_CHECKING:
    from slime_losses.arguments import LossRunArguments


def policy(args: LossRunArguments, checking: Checking) -> None:
    """Say that there are no advantages, that a KL term in the loss has no gradient of the divergence, that a correction
    weighs nothing, and that no sequence can be off-policy."""
    if args.disable_compute_advantages_and_returns and "loss_type" not in checking.set_aside:
        checking.error(
            f"--loss-type {args.loss_type} needs advantages, and --disable-compute-advantages-and-returns leaves them out. For "
            "fine-tuning choose --loss-type sft_loss; else leave that option out."
        )
    if args.use_kl_loss and args.kl_loss_coef and args.kl_loss_type == "k1" and not args.use_unbiased_kl:
        checking.remark(
            "--kl-loss-type k1 with --use-kl-loss: the gradient of log(policy / reference) at the policy's own tokens is 0 in "
            "expectation, so that this term pulls towards the reference not at all and only adds noise. Use k2 or k3 in the "
            "loss, or --use-unbiased-kl; k1 is for --kl-coef, which takes the divergence off the rewards."
        )
    if args.custom_tis_function_path and args.get_mismatch_metrics and not args.use_tis:
        checking.remark(
            f"--custom-tis-function-path {args.custom_tis_function_path} with --get-mismatch-metrics alone is measured and weighs nothing; in "
            "slime the loss is then what it returns. Give --use-tis too to weigh by it."
        )
    own = not (args.use_rollout_logprobs or args.keep_old_actor)
    if args.use_opsm and args.num_steps_per_rollout == 1 and own:
        checking.remark(
            "--use-opsm has no effect: with one optimizer step in a rollout the old log-probs are the policy's own, from which no "
            "sequence has moved away. Give several steps (--num-steps-per-rollout), --use-rollout-logprobs, or --keep-old-actor with samples of older weights."
        )


def critic(args: LossRunArguments, checking: Checking) -> None:
    """Say that the loss of a critic is none for the model itself."""
    if args.loss_type == "value_loss" and not args.custom_loss_function_path:
        checking.error(
            "--loss-type value_loss is what a critic minimises, beside a policy loss: choose --advantage-estimator ppo, and another "
            "--loss-type."
        )


def groups(args: LossRunArguments, checking: Checking) -> None:
    """Say that rewards which are compared within a group of one teach nothing, where anything is learned from rewards."""
    if args.loss_type == "sft_loss" and not args.custom_loss_function_path:
        return
    if args.n_samples_per_prompt > 1 or args.disable_rewards_normalization or args.custom_reward_post_process_path:
        return
    checking.remark(
        f"--n-samples-per-prompt 1 with --advantage-estimator {args.advantage_estimator}: rewards are compared within their group, "
        "and in a group of one every advantage is 0, so that the run learns nothing from them. Give at least 2 samples per prompt, "
        "--disable-rewards-normalization, or an estimator without groups."
    )
