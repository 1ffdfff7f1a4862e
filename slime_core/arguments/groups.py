"""The core's own options, one group per concern, under slime's names."""

from __future__ import annotations

from typing import Literal

from slime_core.arguments.option import REQUIRED, ArgumentGroup, option
from slime_core.profiling import ProfilingArguments


class ClusterArguments(ArgumentGroup):
    """Ranks and placement"""

    actor_num_nodes: int = option(
        1, "Machines that train; each runs --actor-num-gpus-per-node ranks.", ge=1, affects_result=False
    )
    actor_num_gpus_per_node: int = option(
        1,
        "Training ranks on each machine: one GPU each, or about one CPU each where there are no GPUs. More than one rank "
        "in all runs on Ray.",
        ge=1,
        affects_result=False,
    )
    rollout_num_gpus: int | None = option(
        None,
        "GPUs (CPUs where there are none) for the inference engine, apart from those that train. Default: 1 for an engine "
        "inside the rollout worker.",
        ge=1,
        when="rollout_engine",
        affects_result=False,
    )
    colocate: bool = option(
        False,
        "Put the inference engine on the devices that train, instead of on --rollout-num-gpus others.",
        when="rollout_engine",
        affects_result=False,
    )
    offload: bool = option(
        False,
        "What trains gives its GPU memory back while samples are generated, and the engine while training. Needs a train "
        "backend and an engine that can.",
        when="colocate",
        affects_result=False,
    )
    ray_address: str | None = option(
        None,
        "Run on this Ray cluster even with one rank: HOST:PORT; 'auto': the one that this machine belongs to; 'local': a "
        "new one on this machine. Default: in one process or, with more than one rank, 'local'.",
        env="RAY_ADDRESS",
        affects_result=False,
    )


class ModelArguments(ArgumentGroup):
    """Model and checkpoints"""

    hf_checkpoint: str = option(
        REQUIRED, "Hugging Face checkpoint folder: the model's configuration, tokenizer and initial weights."
    )
    load: str | None = option(
        None,
        "Folder of checkpoints to go on from; the newest complete one is taken. When it holds none, the run starts "
        "from --hf-checkpoint, so the same command starts and resumes a run.",
        affects_result=False,
    )
    ref_load: str | None = option(
        None,
        "Checkpoint folder of the initial weights and of the reference model, where they are not those of "
        "--hf-checkpoint (which then gives configuration and tokenizer, and its weights to the engine).",
    )
    save: str | None = option(None, "Folder to write checkpoints into.", affects_result=False)
    save_interval: int | None = option(
        None,
        "Write a checkpoint every so many rollouts (and one at the end).",
        ge=1,
        when="save|save_hf",
        affects_result=False,
    )
    async_save: bool = option(
        False,
        "Train on while a checkpoint is written. It counts as soon as it is complete; the next one waits for it.",
        when="save",
        affects_result=False,
    )
    save_total_limit: int | None = option(
        None, "Keep only so many newest checkpoints.", ge=1, when="save", affects_result=False
    )
    save_hf: str | None = option(
        None,
        "Export a Hugging Face checkpoint here at the end of the run; with '{rollout_id}' in the path also with every "
        "checkpoint.",
        affects_result=False,
    )
    on_resume_change: Literal["error", "warn"] = option(
        "error",
        "What to do when data or arguments that affect the result differ from the checkpoint's.",
        when="load",
        affects_result=False,
    )


class DataArguments(ArgumentGroup):
    """Data"""

    prompt_data: list[str] = option(
        REQUIRED,
        "Training data: .jsonl, .parquet, .arrow or Hugging Face dataset folders; several, globs and slices such as "
        "'rows.jsonl@[0:1000]' are fine.",
        min_length=1,
    )
    prompt_data_weights: list[float] | None = option(
        None,
        "Mix the data: one positive number for each path or glob of --prompt-data, its share of the prompts. Default: all "
        "files are one set.",
        min_length=1,
    )
    input_key: str = option(
        "input", "Column with the prompt text, the list of chat messages, or the list of token ids, used as they are."
    )
    label_key: str | None = option(None, "Column with the label that rewards compare with.")
    tool_key: str | None = option("tools", "Column with the tool definitions of a conversation; rows may lack it.")
    metadata_key: str | None = option("metadata", "Column with a dict that is handed on to hooks; rows may lack it.")
    apply_chat_template: bool = option(
        False,
        "Render message lists with the tokenizer's chat template before they are generated from. SFT always does.",
        read_by="rollout:sglang rollout:fully_async",
    )
    malformed_row: Literal["error", "skip"] = option(
        "error", "A row that is not valid JSON or lacks its column: stop, or skip it and count it."
    )
    rollout_shuffle: bool = option(False, "Shuffle the prompts anew in every epoch.")
    rollout_seed: int = option(42, "Seed of the shuffling and of sampling.", ge=0)
    shuffle_buffer_size: int = option(
        10_000,
        "How many rows of a stream are held in memory and shuffled together.",
        ge=1,
        read_by="data_source:streaming",
        when="rollout_shuffle",
    )
    data_source_path: str = option(
        "global",
        "The data source: a component name ('streaming' for files and pipes that are read forward only) or import path.",
    )
    buffer_filter_path: str = option("pop_first", "How groups are taken from the buffer: a name or import path.")


class RolloutArguments(ArgumentGroup):
    """Rollout and loop"""

    rollout_function_path: str = option(
        "slime.rollout.sglang_rollout.generate_rollout",
        "The rollout function: a component name ('sft'), slime's path of it, or an import path.",
    )
    eval_function_path: str | None = option(None, "The rollout function for evaluation; the same one by default.")
    num_rollout: int | None = option(
        None,
        "How many rollouts to run in all. 0 with --eval-prompt-data evaluates only. Default: from --num-epoch.",
        ge=0,
    )
    num_epoch: int | None = option(
        None, "How many times to go through the data; ignored if --num-rollout is given.", ge=1
    )
    rollout_batch_size: int = option(REQUIRED, "Prompts per rollout.", ge=1)
    n_samples_per_prompt: int = option(1, "Samples per prompt.", ge=1)
    global_batch_size: int | None = option(
        None, "Samples per optimizer step. Default: all samples of a rollout, or from --num-steps-per-rollout.", ge=1
    )
    num_steps_per_rollout: int | None = option(None, "Optimizer steps per rollout.", ge=1)
    rollout_max_context_len: int | None = option(
        None, "Longest sample in tokens, prompt and response together. Default: no limit.", ge=2
    )
    rollout_engine: str | None = option(
        None, "The inference engine: a component name or import path. Needed by whatever generates text."
    )
    rollout_temperature: float = option(
        1.0,
        "Sampling temperature. Training divides the logits by it too.",
        gt=0,
        read_by="rollout:sglang rollout:fully_async core?!disable_compute_advantages_and_returns",
    )
    rollout_max_response_len: int = option(
        1024,
        "Longest response in tokens.",
        ge=1,
        read_by="rollout:sglang rollout:fully_async core?constant_length_loss",
    )
    custom_rollout_log_function_path: str | None = option(
        None, "Import path of a function that logs rollouts in place of slime's own metrics.", affects_result=False
    )
    custom_eval_rollout_log_function_path: str | None = option(
        None, "Import path of a function that logs evaluations in place of slime's own metrics.", affects_result=False
    )
    custom_convert_samples_to_train_data_path: str | None = option(
        None, "Import path of a function that makes the training data of a rollout from its samples."
    )
    save_debug_rollout_data: str | None = option(
        None,
        "Write the samples of every rollout to this path, as JSON lines; '{rollout_id}' in it is filled in.",
        affects_result=False,
    )
    load_debug_rollout_data: str | None = option(
        None,
        "Train on the samples in this path ('{rollout_id}' is filled in) instead of generating any. No engine starts.",
    )
    debug_train_only: bool = option(
        False, "Start no inference engine even if --rollout-engine names one; the rollout function must not need it."
    )
    debug_rollout_only: bool = option(
        False, "Generate, but do not load the model for training: the engine keeps the weights of --hf-checkpoint."
    )


class TrainArguments(ArgumentGroup):
    """Loss and batching"""

    train_backend: str = option("torch", "What trains the model: a component name or import path.")
    loss_type: str = option("policy_loss", "The loss: a component name ('sft_loss') or import path.")
    calculate_per_token_loss: bool = option(
        False, "Average over all trained tokens of the global batch instead of over samples."
    )
    constant_length_loss: bool = option(
        False,
        "Divide the loss of every sample by --rollout-max-response-len instead of by its length (Dr. GRPO).",
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
    reward_key: str | None = option(None, "Which number of a reward that is a dict is trained on.")
    use_rollout_logprobs: bool = option(
        False,
        "Take the engine's log-probs as the old ones of the policy loss, instead of computing them again.",
        when="!disable_compute_advantages_and_returns",
    )
    custom_tis_function_path: str | None = option(
        None,
        "How --use-tis weighs tokens whose engine and trainer disagree: a name or import path. Default: tis.",
        when="!disable_compute_advantages_and_returns",
    )
    share_prompts: bool = option(
        True,
        "Compute the prompt of a group once for all its samples. The numbers stay the same.",
        when="!disable_compute_advantages_and_returns",
    )
    skip_zero_advantages: bool = option(
        True,
        "Do not compute samples that cannot contribute a gradient: all advantages 0, and no KL or entropy term. They "
        "count in every normaliser all the same.",
        when="!disable_compute_advantages_and_returns",
    )
    critic_load: str | None = option(
        None, "Checkpoint folder of the critic's initial weights. Default: the actor's.", read_by="loss:value_loss"
    )
    critic_lr: float | None = option(
        None, "Learning rate of the critic. Default: --lr.", ge=0, read_by="loss:value_loss"
    )
    num_critic_only_steps: int = option(
        0, "Train only the critic on so many first rollouts.", ge=0, read_by="loss:value_loss"
    )
    micro_batch_size: int = option(1, "Samples per micro-batch.", ge=1, when="!use_dynamic_batch_size")
    use_dynamic_batch_size: bool = option(
        False, "Fill micro-batches up to --max-tokens-per-gpu tokens instead of counting samples."
    )
    balance_data: bool = option(
        False, "Spread the samples over the training ranks by their tokens, so that no rank waits long for another."
    )
    max_tokens_per_gpu: int | None = option(
        None,
        "Token budget of a micro-batch. A longer sample stands alone and is never cut.",
        ge=1,
        when="use_dynamic_batch_size",
    )


class EvalArguments(ArgumentGroup):
    """Evaluation"""

    eval_prompt_data: list[str] | None = option(
        None,
        "Evaluation sets: one path, or pairs 'name path name path …'.",
        affects_result=False,
    )
    eval_interval: int | None = option(
        None,
        "Evaluate every so many rollouts, and before the first one.",
        ge=1,
        when="eval_prompt_data",
        affects_result=False,
    )
    skip_eval_before_train: bool = option(
        False, "Do not evaluate before the first rollout.", when="eval_interval", affects_result=False
    )
    eval_generate: int = option(
        0,
        "Let --rollout-engine answer the first so many prompts of every evaluation set.",
        ge=0,
        read_by="rollout:sft",
        when="eval_prompt_data",
        affects_result=False,
    )
    custom_rm_path: str | None = option(
        None,
        "Import path of your own reward function, in place of --rm-type.",
        read_by="rollout:sglang rollout:fully_async rollout:sft?eval_generate",
    )
    rm_type: str | None = option(
        None,
        "How generated answers are scored against their labels: the name of a reward.",
        read_by="rollout:sglang rollout:fully_async rollout:sft?eval_generate",
    )
    eval_max_response_len: int | None = option(
        None,
        "Longest answer in an evaluation, in tokens. Default: --rollout-max-response-len; 256 in SFT.",
        ge=1,
        read_by="rollout:sglang?eval_prompt_data rollout:fully_async?eval_prompt_data rollout:sft?eval_generate",
        affects_result=False,
    )
    eval_temperature: float | None = option(
        None,
        "Sampling temperature in an evaluation; 0 takes the likeliest token. Default: --rollout-temperature; 0 in SFT.",
        ge=0,
        read_by="rollout:sglang?eval_prompt_data rollout:fully_async?eval_prompt_data rollout:sft?eval_generate",
        affects_result=False,
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after so many evaluations in a row without a new best --early-stopping-metric.",
        ge=1,
        when="eval_interval",
    )
    early_stopping_metric: str = option(
        "loss",
        "Metric to watch: 'loss' (lowest wins) or 'reward' (highest wins), averaged over the evaluation sets, or a full "
        "name such as 'eval/heldout/loss'; '-' in front of a full name: highest wins.",
        when="early_stopping_patience",
    )


class OutputArguments(ArgumentGroup):
    """Output"""

    run_dir: str | None = option(
        None,
        "Folder for metrics, configuration and evaluation samples. Default: --save, or runs/<time>.",
        env="SLIME_RUN_DIR",
        affects_result=False,
    )
    failure_policy: list[str] = option(
        [],
        "What to do when a hook function fails, as KIND:field=value,… with the fields timeout, retries, backoff, "
        "on_failure (raise or drop) and abort_after; for example reward:timeout=30,retries=0.",
        affects_result=False,
    )
    tracker: list[str] = option([], "Further trackers by name or import path.", affects_result=False)


GROUPS: list[type[ArgumentGroup]] = [
    ModelArguments,
    DataArguments,
    RolloutArguments,
    TrainArguments,
    EvalArguments,
    OutputArguments,
    ClusterArguments,
    ProfilingArguments,
]
