"""`--train-backend torch`: trains any Hugging Face causal language model on packed rows, in one process.

The loop of slime_core drives it through the methods of `slime_core.backend.TrainBackend`. It runs on the first CUDA
device if there is one, else on the CPU. Weights, gradients and optimizer state are float32; with --bf16 the matrix
products are bfloat16 (autocast).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slime_core.backend import Role
from slime_core.batch import TrainBatch
from slime_core.errors import TrainingError
from slime_core.loss import LossFunction, LossInputs, Reduce, what_reads
from slime_torch import state
from slime_torch.linear_cross_entropy import token_log_probs
from slime_torch.memory import keep_freed_memory
from slime_torch.model import add_value_head, load_model, load_tokenizer, packed_hidden, prepare, vocabulary_size
from slime_torch.optimizer import Schedule, build_optimizer
from slime_torch.packing import PackedRow, pack_samples, trained_places
from slime_torch.rms_norm import speed_up_norms


class TorchBackend:
    """See `slime_core.backend.TrainBackend`."""

    def __init__(self, args: Any) -> None:
        self.args = args

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        """Load the model and make everything ready for the first step."""
        random.seed(self.args.seed)
        numpy.random.seed(self.args.seed % 2**32)
        torch.manual_seed(self.args.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            keep_freed_memory()
        tokenizer = load_tokenizer(self.args.hf_checkpoint)
        option = "--ref-load" if self.args.ref_load else "--hf-checkpoint"
        folder = self.args.ref_load or self.args.hf_checkpoint
        self.attach(load_model(folder, device, option), loss, total_steps, role, tokenizer, folder)

    def attach(
        self,
        model: PreTrainedModel,
        loss: LossFunction,
        total_steps: int,
        role: Role = "actor",
        tokenizer: Any = None,
        folder: str | None = None,
    ) -> None:
        """Train a model that is already in memory, in the dtype that it has.

        Args:
            folder: the checkpoint that a critic's head is read from, if it has one.
        """
        self.model, self.loss, self.tokenizer = model, loss, tokenizer
        if model.device.type == "cpu":
            speed_up_norms(model)
        self._head = prepare(model)
        self._value_head = add_value_head(model, folder) if role == "critic" else None
        self._wants_entropy = role == "actor" and "entropy" in what_reads(loss, self.args)
        if role == "reference":
            model.requires_grad_(False).eval()
            return
        if self.args.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._schedule = Schedule.from_args(self.args, total_steps)
        self._optimizer = build_optimizer(self.args, model.parameters())
        self._step = 0

    def log_probs(self, batch: TrainBatch) -> list[list[float]]:
        """Log-probs of the response tokens, 0.0 where none is trained or computed.

        The operations are those of `train_step`, so the numbers are its numbers, bit for bit, unless the model has
        dropout (or another noise that its training mode brings): that is off here.
        """
        return self._per_token(batch)

    def values(self, batch: TrainBatch) -> list[list[float]]:
        """A critic's predictions, shaped like `log_probs` and as exact."""
        return self._per_token(batch)

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on the global batch.

        Parameters that nothing reached have the gradient 0, so a step without any micro-batch is the step that a batch
        of gradient 0 takes: weights decay and the optimizer's means move on.
        """
        self.model.train()
        self._optimizer.zero_grad()
        losses, metrics = [], []
        micro_batches = batch.micro_batches or [[]]  # the loss names its metrics even where there is nothing to do
        for micro_batch in micro_batches:
            loss, extra = self._forward_backward(batch, micro_batch)
            losses.append(loss)
            metrics.append(extra)
        values = torch.stack(losses).tolist()
        if bad := [m for m, value in zip(micro_batches, values, strict=True) if not math.isfinite(value)]:
            self._stop("The loss is NaN or Inf", batch, bad)
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients).item()
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
        with self._without_trace():
            found = [self._forward(batch, micro_batch) for micro_batch in batch.micro_batches or [[]]]
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

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        was_training, before = self.model.training, state.random_states()
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            state.set_random_states(before)
            self.model.train(was_training)

    def _per_token(self, batch: TrainBatch) -> list[list[float]]:
        found = [[0.0] * sample.response_length for sample in batch.samples]
        with self._without_trace():
            for micro_batch in batch.micro_batches:
                predicted, _ = self._predicted(batch, self._pack(batch, micro_batch), entropy=False)
                places = [(i, j) for i in micro_batch for j in trained_places(batch.samples[i])]
                for (i, j), number in zip(places, predicted.tolist(), strict=True):
                    found[i][j] = number
        return found

    def _forward_backward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self._forward(batch, micro_batch)
        if loss.requires_grad:  # not so when none of its tokens is trained
            loss.backward()
        return loss.detach(), metrics

    def _forward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the loss and of the loss's metrics."""
        row = self._pack(batch, micro_batch)
        predicted, entropy = self._predicted(batch, row, self._wants_entropy)

        def reduce(per_sample: Sequence[float]) -> Reduce:
            return Reduce(predicted.new_tensor([per_sample[i] for i in micro_batch])[row.sample_index])

        inputs = LossInputs(
            log_probs=predicted,
            loss_mask=torch.ones_like(predicted),
            sample_index=row.sample_index,
            reduce=reduce(batch.weights),
            measured=reduce(batch.measured),
            entropy=entropy,
            values=None if self._value_head is None else predicted,
            **row.columns,
        )
        outputs = self.loss(self.args, inputs)
        return outputs.loss, outputs.metrics

    def _pack(self, batch: TrainBatch, micro_batch: Sequence[int]) -> PackedRow:
        return pack_samples(
            [batch.samples[i] for i in micro_batch],
            vocab_size=vocabulary_size(self.model),
            share_prompts=batch.share_prompts,
            columns={name: [values[i] for i in micro_batch] for name, values in batch.columns.items()},
            device=self.model.device,
            dtype=self._head.weight.dtype,
        )

    def _predicted(self, batch: TrainBatch, row: PackedRow, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(T,) log-probs of the trained tokens, or a critic's values at them, and (T,) entropies if wanted."""
        device, dtype = self.model.device, self._head.weight.dtype
        if not len(row.targets):
            nothing = torch.zeros(0, dtype=dtype, device=device)
            return nothing, nothing if entropy else None
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.bf16):
            hidden = packed_hidden(self.model, row.input_ids, row.position_ids, row.segments)
        trained = hidden[row.predictors]
        if self._value_head is not None:
            return self._value_head(trained.to(dtype)).squeeze(1), None
        return token_log_probs(
            trained,
            self._head,
            row.targets,
            temperature=batch.temperature,
            entropy=entropy,
            chunk_size=self.args.log_probs_chunk_size,
            product=torch.bfloat16 if self.args.bf16 else dtype,
        )

    def _gradients(self) -> list[Tensor]:
        """Of all trained parameters; 0 where there is none."""
        gradients = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        return gradients

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
            if not math.isfinite(torch.nn.utils.get_total_norm(self._gradients()).item()):
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
