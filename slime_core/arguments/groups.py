"""The core's own options, one group per concern, under slime's names."""

from __future__ import annotations

from typing import Literal

from slime_core.arguments.option import REQUIRED, ArgumentGroup, option
from slime_core.profiling import ProfilingArguments


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
    save: str | None = option(None, "Folder to write checkpoints into.", affects_result=False)
    save_interval: int | None = option(
        None, "Write a checkpoint every so many rollouts (and one at the end).", ge=1, when="save", affects_result=False
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
    input_key: str = option("input", "Column with the prompt text or the list of chat messages.")
    label_key: str | None = option(None, "Column with the label that rewards compare with.")
    tool_key: str | None = option("tools", "Column with the tool definitions of a conversation; rows may lack it.")
    metadata_key: str | None = option("metadata", "Column with a dict that is handed on to hooks; rows may lack it.")
    apply_chat_template: bool = option(
        False,
        "Render message lists with the tokenizer's chat template before they are generated from. SFT always does.",
        read_by="rollout:sglang",
    )
    malformed_row: Literal["error", "skip"] = option(
        "error", "A row that is not valid JSON or lacks its column: stop, or skip it and count it."
    )
    rollout_shuffle: bool = option(False, "Shuffle the prompts anew in every epoch.")
    rollout_seed: int = option(42, "Seed of the shuffling and of sampling.", ge=0)
    data_source_path: str = option("global", "The data source: a component name or import path.")
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
    debug_train_only: bool = option(
        False, "Start no inference engine even if --rollout-engine names one; the rollout function must not need it."
    )


class TrainArguments(ArgumentGroup):
    """Loss and batching"""

    train_backend: str = option("torch", "What trains the model: a component name or import path.")
    loss_type: str = option("policy_loss", "The loss: a component name ('sft_loss') or import path.")
    calculate_per_token_loss: bool = option(
        False, "Average over all trained tokens of the global batch instead of over samples."
    )
    disable_compute_advantages_and_returns: bool = option(
        False, "Skip log-probs and advantages before training; right for losses such as sft_loss that need none."
    )
    micro_batch_size: int = option(1, "Samples per micro-batch.", ge=1, when="!use_dynamic_batch_size")
    use_dynamic_batch_size: bool = option(
        False, "Fill micro-batches up to --max-tokens-per-gpu tokens instead of counting samples."
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
        read_by="rollout:sft",
        when="eval_generate",
        affects_result=False,
    )
    rm_type: str | None = option(
        None,
        "How generated answers are scored against their labels: the name of a reward.",
        read_by="rollout:sft",
        when="eval_generate",
        affects_result=False,
    )
    eval_max_response_len: int = option(
        256,
        "Longest answer in an evaluation, in tokens.",
        ge=1,
        read_by="rollout:sft",
        when="eval_generate",
        affects_result=False,
    )
    eval_temperature: float = option(
        0.0,
        "Sampling temperature in an evaluation; 0 takes the likeliest token.",
        ge=0,
        read_by="rollout:sft",
        when="eval_generate",
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
    ProfilingArguments,
]
