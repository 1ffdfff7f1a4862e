"""The options of the torch backend, under Megatron's and slime's names and with their meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from slime_core.arguments import ArgumentGroup, option


class TorchArguments(ArgumentGroup):
    """Optimizer, schedule and torch backend"""

    read_by = "train_backend:torch"

    seed: int = option(1234, "Seed of python, numpy and torch in the training process (dropout, new weights).", ge=0)
    optimizer: Literal["adam", "adamw", "sgd"] = option(
        "adam",
        "The optimizer. adam is Megatron's, which decays weights decoupled from the gradient: the same as adamw.",
    )
    lr: float = option(1e-6, "Highest learning rate, reached after the warm-up.", ge=0)
    min_lr: float = option(0.0, "Learning rate at the end of the decay, and after it.", ge=0)
    lr_decay_style: Literal["constant", "linear", "cosine"] = option(
        "linear", "How the learning rate falls after the warm-up."
    )
    lr_decay_iters: int | None = option(
        None, "Optimizer steps, warm-up included, after which --min-lr is reached. Default: all steps of the run.", ge=1
    )
    lr_warmup_iters: int = option(0, "Optimizer steps in which the learning rate rises from 0 to --lr.", ge=0)
    lr_warmup_fraction: float | None = option(
        None, "Length of the warm-up as a fraction of --lr-decay-iters, in place of --lr-warmup-iters.", ge=0, lt=1
    )
    weight_decay: float = option(0.01, "Weight decay. Biases and one-dimensional parameters are never decayed.", ge=0)
    adam_beta1: float = option(0.9, "Decay rate of Adam's mean of gradients.", ge=0, lt=1)
    adam_beta2: float = option(0.999, "Decay rate of Adam's mean of squared gradients.", ge=0, lt=1)
    adam_eps: float = option(1e-8, "Added to the root of Adam's mean of squared gradients.", gt=0)
    sgd_momentum: float = option(0.9, "Momentum of --optimizer sgd.", ge=0, lt=1)
    clip_grad: float = option(
        1.0, "Largest norm of the whole gradient; longer ones are scaled down. 0: no limit.", ge=0
    )
    bf16: bool = option(
        False, "Compute matrix products in bfloat16. Weights, gradients and optimizer state stay in float32."
    )
    gradient_checkpointing: bool = option(
        False, "Keep only every layer's input for the backward pass and compute the rest again: less memory, slower."
    )
    optimizer_cpu_offload: bool = option(
        False,
        "Keep the optimizer's state in host memory but for the moments in which a step is taken. Needs a GPU.",
        affects_result=False,
    )
    fsdp_reshard_after_forward: bool = option(
        True,
        "Between several training ranks: have a layer's weights whole only while the layer is computed. With "
        "--no-fsdp-reshard-after-forward each rank holds all weights and gradients during an optimizer step, and they "
        "travel once in the step and not with every micro-batch: faster, for more memory.",
        affects_result=False,
    )
    lora_rank: int = option(0, "Rank of LoRA adapters, which are then all that is trained. 0: train all weights.", ge=0)
    lora_alpha: float = option(16.0, "An adapter's output is scaled by --lora-alpha / --lora-rank.", gt=0)
    lora_dropout: float = option(0.0, "Share of an adapter's inputs that is dropped in training.", ge=0, lt=1)
    target_modules: list[str] = option(
        ["all-linear"], "Linear layers with an adapter, such as q_proj; all-linear: every one in the model's blocks."
    )
    distributed_timeout_minutes: float = option(
        10, "How long a training rank waits for the others, when they start and in every exchange.", gt=0
    )
    log_probs_chunk_size: int = option(
        1024, "Trained tokens whose logits exist at one time; -1: those of a whole micro-batch."
    )

    @model_validator(mode="after")
    def _check_torch_schedule(self) -> TorchArguments:
        if self.lr_warmup_iters and self.lr_warmup_fraction is not None:
            raise ValueError(
                f"--lr-warmup-iters {self.lr_warmup_iters} and --lr-warmup-fraction {self.lr_warmup_fraction} both "
                "set the length of the warm-up; give only one of them."
            )
        if self.lr_decay_iters is not None and self.lr_warmup_iters >= self.lr_decay_iters:
            raise ValueError(
                f"--lr-warmup-iters {self.lr_warmup_iters} must be less than --lr-decay-iters {self.lr_decay_iters}, "
                "which counts the warm-up too."
            )
        if self.min_lr > self.lr:
            raise ValueError(f"--min-lr {self.min_lr} is above --lr {self.lr}; it must be at most as high.")
        if self.log_probs_chunk_size == 0 or self.log_probs_chunk_size < -1:
            raise ValueError(f"--log-probs-chunk-size is {self.log_probs_chunk_size}; give -1 or a positive number.")
        return self
