"""Which model is trained, and where checkpoints and exports go."""

from __future__ import annotations

from pydantic import field_validator

from slime_core.arguments.rollout_paths import fillable
from slime_core.contracts.options import REQUIRED, ArgumentGroup, option


class ModelArguments(ArgumentGroup):
    """Model and checkpoints"""

    read_by_core = True

    hf_checkpoint: str = option(
        REQUIRED, "Hugging Face checkpoint folder: the model's configuration, tokenizer and initial weights."
    )
    trust_remote_code: bool = option(
        False,
        "Execute Python code that a model folder brings (auto_map in its configuration). Without this, such a model is refused.",
    )
    load: str | None = option(
        None,
        "Folder of checkpoints to go on from; the newest complete one is taken. When it holds none, the run starts "
        "from --ref-load or --hf-checkpoint, so the same command starts and resumes a run. Of another program's "
        "checkpoint in it, or a Hugging Face one, the weights are taken.",
        affects_result=False,
    )
    ref_load: str | None = option(
        None,
        "Checkpoint folder of the initial weights and of the reference model, where they are not those of "
        "--hf-checkpoint (which then gives configuration and tokenizer, and its weights to the engine): a Hugging Face one, or "
        "with --train-backend megatron one of Megatron (torch_dist).",
    )
    save: str | None = option(None, "Folder to write checkpoints into.", affects_result=False)
    save_interval: int | None = option(
        None,
        "Write a checkpoint every so many rollouts, at the end of every epoch of --num-epoch, and at the end.",
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
    save_trigger: str | None = option(
        None,
        "Write a checkpoint after the rollout in which this file appears, and remove the file.",
        when="save",
        affects_result=False,
    )
    save_total_limit: int | None = option(
        None, "Keep only so many newest checkpoints.", ge=1, when="save", affects_result=False
    )
    save_hf: str | None = option(
        None,
        "Export a Hugging Face checkpoint here at the end of the run; with '{rollout_id}' in the path, or "
        "'{rollout_id:05d}', also with every checkpoint.",
        affects_result=False,
    )
    ckpt_step: int | None = option(
        None,
        "Go on from the checkpoint iter_N of --load with this N, and not from the newest one.",
        ge=0,
        when="load",
        affects_result=False,
    )
    on_resume_change: list[str] = option(
        ["error"],
        "What to do when data, or an option that can change the result, is not what it was for the checkpoint: error; warn, for "
        "all of them; or the names of options that may differ, such as lr=allow.",
        when="load",
        affects_result=False,
    )

    _export_is_fillable = field_validator("save_hf")(fillable)

    @field_validator("on_resume_change")
    @classmethod
    def _check_permissions(cls, given: list[str]) -> list[str]:
        for entry in given:
            name, _, permission = entry.partition("=")
            if entry not in ("error", "warn") and (not name or permission != "allow"):
                raise ValueError(f"{entry!r} is none of error, warn and OPTION=allow, such as lr=allow")
        return [entry.replace("-", "_") for entry in given]
