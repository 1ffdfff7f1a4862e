"""`--train-backend torch`: trains any Hugging Face causal language model on packed rows.

The loop of slime_core drives it through the methods of `slime_core.contracts.train_backend.TrainBackend`. It runs on a CUDA device if
there is one, else on the CPU; in one process, or as one of several data-parallel ranks (`ranks`), over which the model
is then spread (`sharding`). Weights, gradients and optimizer state are float32; with --bf16 the matrix products are
bfloat16 (autocast).

Ranks exchange weights and gradients in every forward and backward pass, so all of them go through as many: one without
a token to train computes two tokens of nobody instead, and their result does not count.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slime_core.contracts.loss import LossFunction, LossInputs, Reduce, what_reads
from slime_core.contracts.train_backend import Role, TrainBatch
from slime_core.errors import TrainingError
from slime_core.sample import Sample
from slime_core.tensors.offload import Offloaded
from slime_core.tensors.packed_rows import PackedRow, check_samples, pack_samples, trained_places
from slime_core.training.schedule import Schedule
from slime_torch import export, lora, state
from slime_torch.linear_cross_entropy import token_log_probs
from slime_torch.memory import keep_freed_memory
from slime_torch.model import (
    add_value_head,
    empty_model,
    find_head,
    load_model,
    load_tokenizer,
    packed_hidden,
    prepare,
    vocabulary_size,
)
from slime_torch.offload import HOST, check_device, held, move_state, on_device
from slime_torch.optimizer import build_optimizer
from slime_torch.ranks import Ranks
from slime_torch.rms_norm import speed_up_norms
from slime_torch.sharding import Sharded, local, whole


class TorchBackend:
    """See `slime_core.contracts.train_backend.TrainBackend`."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.data_parallel_size = 1
        self._saver = state.Saver()
        self._offloaded = Offloaded()
        self._optimizer: torch.optim.Optimizer | None = None

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        """Load the model and make everything ready for the first step.

        Of several ranks rank 0 alone reads the weights, into host memory.
        """
        ranks = Ranks.join(self.args.distributed_timeout_minutes)
        random.seed(self.args.seed)
        numpy.random.seed(self.args.seed % 2**32)
        torch.manual_seed(self.args.seed)
        if ranks.device.type == "cpu":
            keep_freed_memory()
        option = "--ref-load" if self.args.ref_load else "--hf-checkpoint"
        folder = self.args.ref_load or self.args.hf_checkpoint
        with ranks.together():
            tokenizer = load_tokenizer(self.args.hf_checkpoint)
            if ranks.rank == 0:
                model = load_model(folder, ranks.device if ranks.size == 1 else torch.device("cpu"), option)
            else:
                model = empty_model(folder, option)
        self.attach(model, loss, total_steps, role, tokenizer, folder)

    def attach(
        self,
        model: PreTrainedModel,
        loss: LossFunction,
        total_steps: int,
        role: Role = "actor",
        tokenizer: Any = None,
        folder: str | None = None,
    ) -> None:
        """Train a model that is already in memory, in the dtype that it has. Of several ranks, rank 0's weights count.

        Args:
            folder: the checkpoint that a critic's head is read from, if it has one.
        """
        self._ranks = ranks = Ranks.join(self.args.distributed_timeout_minutes)
        self.data_parallel_size = ranks.size
        self.model, self.loss, self.tokenizer = model, loss, tokenizer
        check_device(ranks.device, self.args)
        with ranks.together():
            if (model if ranks.size == 1 else ranks).device.type == "cpu":
                speed_up_norms(model)
            prepare(model)
            self._value_head = add_value_head(model, folder) if role == "critic" else None
            self._wants_entropy = role == "actor" and "entropy" in what_reads(loss, self.args)
            if role == "reference":
                model.requires_grad_(False).eval()
            elif self.args.lora_rank:
                lora.add_adapters(model, self.args)
        self._sharded = None
        if ranks.size > 1:
            self._sharded = Sharded(model, ranks, self.args.fsdp_reshard_after_forward)
            torch.manual_seed(self.args.seed + ranks.rank)  # each rank drops out its own
        if role == "reference":
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
        *others, last = self._own(batch)
        found = [self._forward_backward(batch, micro_batch, last=False) for micro_batch in others]
        found.append(self._forward_backward(batch, last))
        losses, metrics = self._of_all_ranks(found)
        pairs = zip(batch.micro_batches, losses, strict=False)  # without a micro-batch there are losses of nothing
        if bad := [micro_batch for micro_batch, loss in pairs if not math.isfinite(loss)]:
            self._stop("The loss is NaN or Inf", batch, bad)
        gradients = self._gradients()
        norm = self._norm(gradients)
        if not math.isfinite(norm):
            self._stop("The gradient is NaN or Inf", batch, self._with_bad_gradient(batch))
        lr = self._schedule.lr_at(self._step)
        self._apply(gradients, norm, lr)
        return {
            "loss": sum(losses),
            **metrics,
            "grad_norm": norm,
            "lr": lr,
            "num_trained_tokens": batch.num_trained_tokens,
            "num_tokens": batch.num_tokens,
        }

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        """The loss on `batch`. Leaves no trace."""
        with self._without_trace():
            found = [self._forward(batch, micro_batch) for micro_batch in self._own(batch)]
        losses, metrics = self._of_all_ranks(found)
        return {"loss": sum(losses), **metrics}

    def reference(self) -> lora.BaseModel | None:
        """With LoRA, the reference model of a KL term, in the memory of this one. None: it takes a backend of its own."""
        return lora.BaseModel(self) if self.args.lora_rank else None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face names, detached, tied ones once. With LoRA: merged.

        All ranks iterate together, and each parameter is put together when its turn comes.
        """
        return lora.merged_parameters(self.model, whole)

    def save_state(self, path: Path) -> None:
        """Write trained weights, optimizer, schedule and random states. With `--async-save` they are copied to host
        memory and written while training goes on."""
        found = state.collect(self.model, self._optimizer, self._step)
        self._saver.save(path, found, background=getattr(self.args, "async_save", False))

    def saved(self, wait: bool = True) -> bool:
        """Whether the last `save_state` is on disk; raises what kept it from getting there."""
        return self._saver.saved(wait)

    def load_state(self, path: Path) -> None:
        """Restore what `save_state` wrote, bit for bit."""
        self._step = state.load(path, self.model, self._optimizer)
        if self.args.optimizer_cpu_offload:
            move_state(self._optimizer, HOST)

    def export_hf(self, path: Path) -> None:
        """Write a Hugging Face checkpoint; see `slime_torch.export`."""
        export.export_hf(self.model, self.tokenizer, path, self._ranks, adapters=bool(self.args.lora_rank))

    def offload(self) -> None:
        """Give back the GPU's memory until `onload`. What lay there waits in host memory, but for the gradients."""
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        self._offloaded.leave(held(self.model, self._optimizer), self.model.device)

    def onload(self) -> None:
        """The inverse of `offload`: everything is as it was, bit for bit."""
        self._offloaded.come_back()

    def close(self) -> None:
        """Leave the process group of the training ranks, if there is one; the models of a process share it."""
        Ranks.leave()

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
            if self._sharded is not None:
                self._sharded.reshard_all()

    def _per_token(self, batch: TrainBatch) -> list[list[float]]:
        found = [[0.0] * sample.response_length for sample in batch.samples]
        with self._without_trace():
            for micro_batch in self._own(batch):
                predicted, _ = self._predicted(batch, self._pack(batch, micro_batch), entropy=False)
                places = [(i, j) for i in micro_batch for j in trained_places(batch.samples[i])]
                for (i, j), number in zip(places, predicted.tolist(), strict=True):
                    found[i][j] = number
        if self._ranks.size == 1:
            return found
        flat = torch.tensor([number for row in found for number in row], dtype=torch.float64, device=self._ranks.device)
        numbers = iter(self._ranks.sum(flat).tolist())
        return [[next(numbers) for _ in row] for row in found]

    def _own(self, batch: TrainBatch) -> Sequence[Sequence[int]]:
        """What this rank computes: at least one micro-batch, so that the loss names its metrics where there is none."""
        if self._ranks.size > 1:  # a sample that cannot be packed must stop all ranks, not the one that has it
            computed = [batch.samples[i] for micro_batch in batch.micro_batches for i in micro_batch]
            check_samples(computed, vocabulary_size(self.model))
        return batch.of_rank(self._ranks.rank, self._ranks.size) or [[]]

    def _of_all_ranks(self, found: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[float], dict[str, float]]:
        """Losses of all micro-batches of the batch, in their order, and the sums of the metrics, added in that order,
        so that the result is the same in every run and on every rank."""
        names = list(found[0][1])
        rows = [[loss.item(), *(metrics[name].item() for name in names)] for loss, metrics in found]
        losses, *columns = zip(*self._ranks.interleave(rows), strict=True)
        return list(losses), {name: sum(column) for name, column in zip(names, columns, strict=True)}

    def _forward_backward(
        self, batch: TrainBatch, micro_batch: Sequence[int], last: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds to the gradients, which are complete on all ranks after the `last` micro-batch of a step."""
        loss, metrics = self._forward(batch, micro_batch)
        if self._sharded is not None:
            self._sharded.backward(loss, last)
        elif loss.requires_grad:  # not so when none of its tokens is trained
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
        if self._sharded is None:
            return outputs.loss, outputs.metrics
        return outputs.loss + predicted[:0].sum(), outputs.metrics  # goes backward even from a loss without a gradient

    def _pack(self, batch: TrainBatch, micro_batch: Sequence[int]) -> PackedRow:
        return pack_samples(
            [batch.samples[i] for i in micro_batch],
            vocab_size=vocabulary_size(self.model),
            share_prompts=batch.share_prompts,
            columns={name: [values[i] for i in micro_batch] for name, values in batch.columns.items()},
            device=self.model.device,
            dtype=find_head(self.model).weight.dtype,
        )

    def _predicted(self, batch: TrainBatch, row: PackedRow, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """(T,) log-probs of the trained tokens, or a critic's values at them, and (T,) entropies if wanted."""
        if not len(row.targets):
            if self._sharded is None:
                nothing = torch.zeros(0, dtype=find_head(self.model).weight.dtype, device=self.model.device)
                return nothing, nothing if entropy else None
            predicted, entropies = self._predicted(batch, self._row_of_nobody(), entropy)
            return predicted[:0], None if entropies is None else entropies[:0]
        compute = partial(self._compute, batch.temperature, row, entropy)
        predicted, entropies = compute() if self._sharded is None else self._sharded(compute)
        return predicted if self._value_head is None else predicted.squeeze(1), entropies

    def _row_of_nobody(self) -> PackedRow:
        sample = Sample(tokens=[0, 0], response_length=1)
        return pack_samples([sample], vocab_size=vocabulary_size(self.model), device=self.model.device)

    def _compute(self, temperature: float, row: PackedRow, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """What `_predicted` returns, a critic's values as (T, 1)."""
        head = find_head(self.model)  # not kept: with several ranks its weight is whole only now
        device, dtype = row.input_ids.device, head.weight.dtype
        kept = self._sharded is None  # else autocast would hold on to the weights of all layers
        with torch.autocast(device.type, torch.bfloat16, enabled=self.args.bf16, cache_enabled=kept):
            hidden = packed_hidden(self.model, row.input_ids, row.position_ids, row.segments)
        trained = hidden[row.predictors]
        if self._value_head is not None:
            return self._value_head(trained.to(dtype)), None
        return token_log_probs(
            trained,
            head,
            row.targets,
            temperature=temperature,
            entropy=entropy,
            chunk_size=self.args.log_probs_chunk_size,
            product=torch.bfloat16 if self.args.bf16 else dtype,
        )

    def _gradients(self) -> list[Tensor]:
        """Of all trained parameters, this rank's parts of them; 0 where there is none."""
        gradients = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(local(parameter.grad))
        return gradients

    def _norm(self, gradients: list[Tensor]) -> float:
        """Of the whole gradient."""
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if self._ranks.size == 1:
            return norm
        square = torch.tensor(norm * norm, dtype=torch.float64, device=self._ranks.device)
        return math.sqrt(self._ranks.sum(square).item())

    def _apply(self, gradients: list[Tensor], norm: float, lr: float) -> None:
        limit = self.args.clip_grad
        if limit and norm > limit:
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with on_device(self._optimizer) if self.args.optimizer_cpu_offload else nullcontext():
            self._optimizer.step()
        self._step += 1

    def _with_bad_gradient(self, batch: TrainBatch) -> list[Sequence[int]]:
        """The micro-batches whose gradient alone is not finite; all when none is."""
        bad: list[Sequence[int]] = []
        for number, micro_batch in enumerate(batch.micro_batches):
            self._optimizer.zero_grad()
            own = number % self._ranks.size == self._ranks.rank
            self._forward_backward(batch, micro_batch if own else [])
            if not math.isfinite(self._norm(self._gradients())):
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
