"""`--train-backend torch`: trains any Hugging Face causal language model on packed rows, in one process.

The loop of slime_core drives it through the methods of `slime_core.backend.TrainBackend`. It runs on the first CUDA
device if there is one, else on the CPU. Weights, gradients and optimizer state are float32; with --bf16 the matrix
products are bfloat16 (autocast).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slime_core.batch import TrainBatch
from slime_core.errors import TrainingError
from slime_core.loss import LossFunction, LossInputs, Reduce
from slime_torch import state
from slime_torch.linear_cross_entropy import token_log_probs
from slime_torch.memory import keep_freed_memory
from slime_torch.model import load_model, load_tokenizer, packed_hidden, prepare, vocabulary_size
from slime_torch.optimizer import Schedule, build_optimizer
from slime_torch.packing import pack_samples, token_weights
from slime_torch.rms_norm import speed_up_norms


class TorchBackend:
    """See `slime_core.backend.TrainBackend`."""

    def __init__(self, args: Any) -> None:
        self.args = args

    def setup(self, loss: LossFunction, total_steps: int) -> None:
        """Load the model and make everything ready for the first step."""
        random.seed(self.args.seed)
        numpy.random.seed(self.args.seed % 2**32)
        torch.manual_seed(self.args.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            keep_freed_memory()
        tokenizer = load_tokenizer(self.args.hf_checkpoint)
        self.attach(load_model(self.args.hf_checkpoint, device), loss, total_steps, tokenizer)

    def attach(self, model: PreTrainedModel, loss: LossFunction, total_steps: int, tokenizer: Any = None) -> None:
        """Train a model that is already in memory, in the dtype that it has."""
        self.model, self.loss, self.tokenizer = model, loss, tokenizer
        if self.args.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if model.device.type == "cpu":
            speed_up_norms(model)
        self._head = prepare(model)
        self._schedule = Schedule.from_args(self.args, total_steps)
        self._optimizer = build_optimizer(self.args, model.parameters())
        self._step = 0

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on the global batch."""
        self.model.train()
        self._optimizer.zero_grad()
        losses, metrics = [], []
        for micro_batch in batch.micro_batches:
            loss, extra = self._forward_backward(batch, micro_batch)
            losses.append(loss)
            metrics.append(extra)
        values = torch.stack(losses).tolist()
        if bad := [m for m, value in zip(batch.micro_batches, values, strict=True) if not math.isfinite(value)]:
            self._stop("The loss is NaN or Inf", batch, bad)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0
        if not math.isfinite(norm):
            self._stop("The gradient is NaN or Inf", batch, self._with_bad_gradient(batch))
        lr = self._schedule.lr_at(self._step)
        self._apply(gradients, norm, lr)
        return {
            "loss": sum(values),
            **_sums(metrics),
            "grad_norm": norm,
            "lr": lr,
            "num_trained_tokens": batch.num_trained_tokens,
            "num_tokens": batch.num_tokens,
        }

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        """The loss on `batch`. Leaves no trace."""
        was_training = self.model.training
        self.model.eval()
        before = state.random_states()
        with torch.no_grad():
            found = [self._forward(batch, micro_batch) for micro_batch in batch.micro_batches]
        state.set_random_states(before)
        self.model.train(was_training)
        return {"loss": sum(loss.item() for loss, _ in found), **_sums([metrics for _, metrics in found])}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face names, detached, tied ones once."""
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def save_state(self, path: Path) -> None:
        """Write model, optimizer, schedule and random states."""
        state.save(path, self.model, self._optimizer, self._step)

    def load_state(self, path: Path) -> None:
        """Restore what `save_state` wrote, bit for bit."""
        self._step = state.load(path, self.model, self._optimizer)

    def export_hf(self, path: Path) -> None:
        """Write a Hugging Face checkpoint, its weights as they are trained (float32)."""
        self.model.save_pretrained(path)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)

    def _forward_backward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self._forward(batch, micro_batch)
        if loss.requires_grad:  # not so when none of its tokens is trained
            loss.backward()
        return loss.detach(), metrics

    def _forward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the loss and of the loss's metrics."""
        samples = [batch.samples[i] for i in micro_batch]
        device, dtype = self.model.device, self._head.weight.dtype
        row = pack_samples(
            samples,
            vocab_size=vocabulary_size(self.model),
            columns={name: [values[i] for i in micro_batch] for name, values in batch.columns.items()},
            device=device,
            dtype=dtype,
        )
        weights = token_weights(
            samples,
            per_token=self.args.calculate_per_token_loss,
            num_trained_tokens=batch.num_trained_tokens,
            num_samples=batch.num_samples,
            device=device,
            dtype=dtype,
        )
        if len(row.targets):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.args.bf16):
                hidden = packed_hidden(self.model, row.input_ids, row.position_ids, row.segments)
            trained = hidden[row.predictors].to(torch.bfloat16 if self.args.bf16 else dtype)
            log_probs = token_log_probs(trained, self._head, row.targets, self.args.log_probs_chunk_size)
        else:
            log_probs = torch.zeros(0, dtype=dtype, device=device)
        inputs = LossInputs(log_probs, torch.ones_like(weights), row.sample_index, Reduce(weights), **row.columns)
        outputs = self.loss(self.args, inputs)
        return outputs.loss, outputs.metrics

    def _apply(self, gradients: list[Tensor], norm: float, lr: float) -> None:
        limit = self.args.clip_grad
        if limit and norm > limit:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._step += 1

    def _with_bad_gradient(self, batch: TrainBatch) -> list[Sequence[int]]:
        """The micro-batches whose gradient alone is not finite; all when none is."""
        bad: list[Sequence[int]] = []
        for micro_batch in batch.micro_batches:
            self._optimizer.zero_grad()
            self._forward_backward(batch, micro_batch)
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            if gradients and not math.isfinite(torch.nn.utils.get_total_norm(gradients).item()):
                bad.append(micro_batch)
        return bad or list(batch.micro_batches)

    def _stop(self, what: str, batch: TrainBatch, micro_batches: Sequence[Sequence[int]]) -> None:
        self._optimizer.zero_grad()
        names = [batch.samples[i].name for micro_batch in micro_batches for i in micro_batch]
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        raise TrainingError(
            f"{what} in optimizer step {self._step}, in the micro-batch of {shown}. The weights and the optimizer were "
            "left as they were before the step. Look at these samples; lower --lr or set --clip-grad if training "
            "had become unstable."
        )


def _sums(metrics: list[dict[str, Tensor]]) -> dict[str, float]:
    """Sum by name, in the order of the micro-batches, so that the result is the same in every run."""
    return {name: sum(m[name].item() for m in metrics) for name in (metrics[0] if metrics else {})}
