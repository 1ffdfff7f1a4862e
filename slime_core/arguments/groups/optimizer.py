"""Optimizer, learning-rate schedule and numerics of training: the options that every train backend shares, under Megatron's
and slime's names and with their meaning. A backend declares those that it reads; the core itself reads none of them."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from slime_core.arguments.groups.training import TrainArguments
from slime_core.contracts.options import ArgumentGroup, option


class OptimizerArguments(ArgumentGroup):
    """Optimizer and schedule"""

    seed: int = option(
        1234, "Seed of python, numpy and torch in the training process (dropout, new weights).", ge=0, lt=2**64
    )
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
    weight_decay: float = option(
        0.01, "Weight decay. Norms, biases and whatever has one dimension are never decayed.", ge=0
    )
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
    deterministic_mode: bool = option(
        False,
        "Compute a step so that the same numbers give the same bits every time, as they do on a CPU without it: on a GPU a run that is "
        "repeated or resumed is then equal bit for bit, not just but for rounding. Slower.",
    )
    optimizer_cpu_offload: bool = option(
        False,
        "Keep the optimizer's state in host memory but for the moments in which a step is taken. Needs a GPU.",
        affects_result=False,
    )
    distributed_timeout_minutes: float = option(
        10, "How long a training rank waits for the others, when they start and in every exchange.", gt=0
    )
    log_probs_chunk_size: int = option(
        1024, "Trained tokens whose logits exist at one time; -1: those of a whole micro-batch."
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> OptimizerArguments:
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
        critic_lr = self.critic_lr if isinstance(self, TrainArguments) else None
        if critic_lr is not None and self.min_lr > critic_lr:
            raise ValueError(
                f"--min-lr {self.min_lr} is above --critic-lr {critic_lr}, the highest rate of the critic; it must be at "
                "most as high."
            )
        if self.log_probs_chunk_size == 0 or self.log_probs_chunk_size < -1:
            raise ValueError(f"--log-probs-chunk-size is {self.log_probs_chunk_size}; give -1 or a positive number.")
        return self
