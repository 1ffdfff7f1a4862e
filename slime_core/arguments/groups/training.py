"""The loss, advantages, and how samples become batches."""

from __future__ import annotations

import re

from pydantic import field_validator, model_validator

from slime_core.arguments.groups.lora import LoraArguments
from slime_core.arguments.rollout_paths import fillable
from slime_core.contracts.options import ArgumentGroup, option


class TrainArguments(ArgumentGroup):
    """Loss and batching"""

    read_by_core = True

    train_backend: str = option("torch", "What trains the model: a component name or import path.")
    loss_type: str = option("policy_loss", "The loss: a component name ('sft_loss') or import path.")
    calculate_per_token_loss: bool = option(
        False, "Average over all trained tokens of the global batch instead of over trajectories."
    )
    constant_length_loss: bool = option(
        False,
        "Divide the loss of every trajectory by --rollout-max-response-len instead of by its length (Dr. GRPO).",
        when="!calculate_per_token_loss",
    )
    custom_loss_function_path: str | None = option(None, "Import path of your own loss; with --loss-type custom_loss.")
    disable_compute_advantages_and_returns: bool = option(
        False, "Skip log-probs and advantages before training; right for losses such as sft_loss that need none."
    )
    advantage_estimator: str = option(
        "grpo", "How advantages follow from rewards: a component name.", when="!disable_compute_advantages_and_returns"
    )
    custom_advantage_function_path: str | None = option(
        None,
        "Import path of your own advantage estimator, in place of --advantage-estimator.",
        when="!disable_compute_advantages_and_returns",
    )
    custom_reward_post_process_path: str | None = option(
        None,
        "What becomes of the rewards before advantages are taken, in place of the estimator's normalisation: a name or "
        "import path.",
        when="!disable_compute_advantages_and_returns",
    )
    rollout_data_postprocess_path: str | None = option(
        None,
        "Import path of a function that changes what a rollout is trained with, such as its masks, once log-probs and advantages "
        "have been computed.",
    )
    save_debug_train_data: str | None = option(
        None,
        "Write what every rollout is trained with (masks, log-probs, advantages) to this path; '{rollout_id}' in it is filled "
        "in. A name that ends with .jsonl or .json gives JSON lines, any other an Arrow file; slime samples shows both.",
        affects_result=False,
    )
    reward_key: str | None = option(None, "Which number of a reward that is a dict is trained on.")
    use_rollout_logprobs: bool = option(
        False,
        "Take the engine's log-probs as the old ones of the policy loss, instead of computing them again.",
        when="!disable_compute_advantages_and_returns",
    )
    use_tis: bool = option(
        False,
        "Weigh each token by how much likelier the trainer finds it than the engine that sampled it; see "
        "--custom-tis-function-path.",
        read_by_core=False,
        when="!disable_compute_advantages_and_returns",
    )
    custom_tis_function_path: str | None = option(
        None,
        "How --use-tis weighs tokens whose engine and trainer disagree: a name or import path. Default: tis.",
        when="use_tis|get_mismatch_metrics",
    )
    get_mismatch_metrics: bool = option(
        False,
        "Measure what --use-tis measures of the difference between engine and trainer, without weighing any token. With "
        "--use-rollout-logprobs the trainer then takes log-probs all the same.",
        read_by_core=False,
        when="!disable_compute_advantages_and_returns",
    )
    custom_pg_loss_reducer_function_path: str | None = option(
        None,
        "How the policy loss of tokens becomes one number, in place of its mean: a name or import path. Metrics, KL and entropy "
        "terms keep the mean.",
        read_by_core=False,
    )
    share_prompts: bool = option(
        True,
        "Compute the prompt of a group once for all its samples. The numbers stay the same.",
        when="!disable_compute_advantages_and_returns",
    )
    skip_zero_advantages: bool = option(
        True,
        "Do not compute samples that cannot contribute a gradient: all advantages 0, no KL or entropy term, and no "
        "--rollout-data-postprocess-path that may give them one. They count in every normaliser all the same.",
        when="!disable_compute_advantages_and_returns",
    )
    critic_loss_type: str = option(
        "value_loss", "What a critic minimises, where the loss or the estimator reads its values.", read_by_core=False
    )
    critic_load: str | None = option(
        None, "Checkpoint folder of the critic's initial weights. Default: the actor's.", read_by_core=False
    )
    critic_lr: float | None = option(None, "Learning rate of the critic. Default: --lr.", ge=0, read_by_core=False)
    num_critic_only_steps: int = option(0, "Train only the critic on so many first rollouts.", ge=0, read_by_core=False)
    ref_update_interval: int | None = option(
        None,
        "Every so many rollouts the reference model becomes what the actor is then. Default: it stays what the run began with.",
        ge=1,
    )
    update_weights_interval: int = option(
        1,
        "Hand the engine the trainer's weights only before every so many rollouts; it generates with older ones between.",
        ge=1,
    )
    keep_old_actor: bool = option(
        False,
        "Compute the old log-probs of the policy loss with the weights that generated the samples, where the trainer has gone on since: "
        "with train-async, and with --update-weights-interval. A copy of them is kept in host memory.",
        when="!disable_compute_advantages_and_returns",
    )
    only_train_params_name_list: list[str] | None = option(
        None,
        "Train only parameters in whose name one of these regular expressions is found. The names are Hugging Face's, whatever the "
        "train backend: 'layers.2[0-3].', q_proj, embed_tokens. A critic's value head is always trained.",
        read_by_core=False,
    )
    freeze_params_name_list: list[str] | None = option(
        None,
        "Leave parameters as they are in whose name one of these regular expressions is found; the names are Hugging Face's.",
        read_by_core=False,
    )
    freeze_vision: bool = option(
        False,
        "Leave the vision tower of a vision-language model as it is, and what projects images into the text model; LoRA adapters then "
        "lie in the text model alone.",
        read_by_core=False,
    )
    reset_optimizer_states: bool = option(
        False,
        "Let the optimizer forget its means of gradients and its count of steps before the first step of every rollout, the "
        "critic's too. The learning-rate schedule goes on.",
    )
    micro_batch_size: int = option(1, "Samples per micro-batch.", ge=1, when="!use_dynamic_batch_size")
    use_dynamic_batch_size: bool = option(
        False, "Fill micro-batches up to --max-tokens-per-gpu tokens instead of counting samples."
    )
    balance_data: bool = option(
        False,
        "Spread the samples over the training ranks by the work that they are for the model, an estimate of its products, so that no "
        "rank waits long for another.",
    )
    max_tokens_per_gpu: int | None = option(
        None,
        "Token budget of a micro-batch. A longer sample stands alone and is never cut.",
        ge=1,
        when="use_dynamic_batch_size",
    )

    _dump_is_fillable = field_validator("save_debug_train_data")(fillable)

    @model_validator(mode="after")
    def _check_trained_parameters(self) -> TrainArguments:
        lists = {
            "--only-train-params-name-list": self.only_train_params_name_list,
            "--freeze-params-name-list": self.freeze_params_name_list,
        }
        given = [option for option, patterns in lists.items() if patterns]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what is trained; give only one of them.")
        if given and isinstance(self, LoraArguments) and self.lora_rank:
            raise ValueError(
                f"{given[0]} and --lora-rank: with LoRA only the adapters are trained. --target-modules says which layers get one; "
                f"leave {given[0]} out."
            )
        for pattern in [*(self.only_train_params_name_list or ()), *(self.freeze_params_name_list or ())]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{given[0]}: {pattern!r} is no regular expression: {error}.") from None
        return self
