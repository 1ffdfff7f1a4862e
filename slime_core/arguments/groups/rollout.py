"""How samples come about, and how many."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from slime_core.arguments.rollout_paths import fillable
from slime_core.contracts.engine import GREEDY_BELOW
from slime_core.contracts.options import REQUIRED, ArgumentGroup, from_json, option


class RolloutArguments(ArgumentGroup):
    """Rollout and loop"""

    read_by_core = True

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
    start_rollout_id: int | None = option(
        None,
        "Number of the first rollout. Default: the one behind the checkpoint of --load, or 0. With another number than that one, models "
        "and optimizers are those of the checkpoint and the data begins at its beginning.",
        ge=0,
        affects_result=False,
    )
    num_epoch: int | None = option(
        None,
        "How many times to go through the data: that many times its prompts make rollouts of --rollout-batch-size, which go on "
        "from one epoch into the next. Ignored if --num-rollout is given.",
        ge=1,
    )
    rollout_batch_size: int = option(REQUIRED, "Prompts per rollout.", ge=1)
    n_samples_per_prompt: int = option(1, "Samples per prompt.", ge=1)
    global_batch_size: int | None = option(
        None,
        "Samples per optimizer step; what a generate function made of one counts as one. Default: all samples of a rollout, or "
        "from --num-steps-per-rollout.",
        ge=1,
    )
    num_steps_per_rollout: int | None = option(None, "Optimizer steps per rollout.", ge=1)
    rollout_max_context_len: int | None = option(
        None, "Longest sample in tokens, prompt and response together. Default: no limit.", ge=2
    )
    rollout_engine: str | None = option(
        None,
        "The inference engine: a component name or import path. Needed by whatever generates text.",
        when="!debug_train_only",
    )
    rollout_temperature: float = option(
        1.0,
        "Sampling temperature. Training divides the logits by it too.",
        ge=GREEDY_BELOW,
        read_by_core="!disable_compute_advantages_and_returns",
    )
    rollout_max_response_len: int = option(
        1024,
        "Longest response in tokens.",
        ge=1,
        read_by_core="constant_length_loss",
    )
    rollout_sample_hook_path: list[str] = option(
        [],
        "Import paths of functions that see or change every generated sample before it is scored, one after the other. May be "
        "repeated.",
        read_by_core=False,
        repeatable=True,
    )
    custom_config_path: str | None = option(
        None,
        "YAML file of values for functions of your own, which they read as args.NAME. What is the name of an option sets it, and wins "
        "over the command line.",
        affects_result=False,
    )
    custom_config: dict[str, Any] = option(
        {}, "The same values without a file, as a JSON object; --custom-config-path adds to them."
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
        "Write the samples of every rollout to this path; '{rollout_id}' in it is filled in. A name that ends with .jsonl or .json gives JSON lines, any other "
        "an Arrow file; slime samples shows both.",
        affects_result=False,
    )
    load_debug_rollout_data: str | None = option(
        None,
        "Train on the samples in this path ('{rollout_id}' is filled in) instead of generating any. No engine starts.",
    )
    dump_details: str | None = option(
        None,
        "Folder for all details of a run: the tokenizer, the image processor of a model that reads images, and the same as --save-debug-rollout-data rollout_data/{rollout_id}.arrow and "
        "--save-debug-train-data train_data/{rollout_id}.arrow in it.",
        affects_result=False,
    )
    debug_train_only: bool = option(
        False, "Start no inference engine even if --rollout-engine names one; the rollout function must not need it."
    )
    debug_rollout_only: bool = option(
        False, "Generate, but do not load the model for training: the engine keeps the weights of --hf-checkpoint."
    )

    _dumps_are_fillable = field_validator("save_debug_rollout_data", "load_debug_rollout_data")(fillable)
    _custom_config_is_an_object = field_validator("custom_config", mode="before")(from_json)
