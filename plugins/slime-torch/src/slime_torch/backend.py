"""`--train-backend torch`: trains any Hugging Face causal language model on packed rows.

The loop of slime_core drives it through the methods of `slime_core.contracts.train_backend.TrainBackend`. It runs on a
CUDA device if there is one, else on the CPU; in one process, or as one of several data-parallel ranks, over which the
model is then spread (`sharding`). Weights, gradients and optimizer state are float32; with --bf16 the matrix products
are bfloat16 (autocast), with --fp8-format they are those of FP8 (`low_precision`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slime_core.contracts.loss import LossFunction, LossOutputs, what_reads
from slime_core.contracts.memory import Holding, MemoryUse, ModelShape
from slime_core.contracts.train_backend import Role, TrainBatch
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import is_vision_model, processor_of
from slime_core.errors import ArgumentError, TrainingError
from slime_core.tensors.determinism import deterministic
from slime_core.tensors.determinism import prepare as prepare_determinism
from slime_core.tensors.embedding import require_rows, require_tied
from slime_core.tensors.freed_memory import keep_freed_memory
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.fused_proof import kernels_are_right
from slime_core.tensors.kept_weights import HasKeptWeights, KeptWeights
from slime_core.tensors.matrix_products import speed_up_products
from slime_core.tensors.micro_batches import gather_outputs, loss_inputs, response_values, step_metrics
from slime_core.tensors.norm import squares_of
from slime_core.tensors.not_finite import require_finite_gradient, require_finite_losses
from slime_core.tensors.offload import Offloaded, check_device
from slime_core.tensors.packed_rows import check_samples
from slime_core.tensors.random_states import random_states, seed_all, set_random_states
from slime_core.tensors.ranks import Ranks
from slime_core.tensors.rotary import looks_at_length
from slime_core.training.initial_weights import option_of
from slime_core.training.precision import recipe_of
from slime_core.training.schedule import Schedule
from slime_torch import dropout, export, lora, state, stored_export
from slime_torch.arguments import TorchRunArguments, fuses, refused
from slime_torch.compiled import compile_layers
from slime_torch.experts import group_experts
from slime_torch.fused_layers import fuse_layers
from slime_torch.gated_layers import keep_less
from slime_torch.low_precision import LowPrecision, computing, layers_of, require_recipe
from slime_torch.memory import memory
from slime_torch.model import (
    add_value_head,
    check_checkpoint,
    empty_model,
    enable_gradient_checkpointing,
    freeze,
    load_model,
    prepare,
    require_gradient_checkpointing,
    vocabulary_size,
)
from slime_torch.offload import HOST, held, move_state, on_device
from slime_torch.optimizer import (
    build_optimizer,
    clip,
    forget_steps,
    gradient_norm,
    gradients_of,
    keep_embedding_gradients_sparse,
    norm_of,
)
from slime_torch.predictor import Predictor
from slime_torch.rms_norm import speed_up_norms
from slime_torch.sharding import Sharded, local, whole
from slime_torch.vision import Vision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
    from slime_core.training.components import TrainComponents


class TorchBackend(HasKeptWeights):
    """One model in training, as `slime_core.contracts.train_backend.TrainBackend` describes it.

    Attributes:
        data_parallel_size: the number of training ranks, known after `setup`.
        shares_prompts: the prompt of neighbouring samples is computed once, unless positions depend on the length of a whole
            sample.
        model: the model itself, after `setup` or `attach`.
        optimizer: its optimizer; None for a reference model.
    """

    def __init__(self, args: TorchRunArguments, components: TrainComponents | None = None) -> None:
        """Raises:
        ArgumentError: the options ask for something that this backend does not do.
        """
        if found := refused(args):
            raise ArgumentError("\n".join(found))
        prepare_determinism(args)
        self.args, self._components = args, components
        self.data_parallel_size = 1
        self.shares_prompts = True
        self.optimizer: torch.optim.Optimizer | None = None
        self._ranks: Ranks | None = None
        self._saver = state.Saver()
        self._offloaded = Offloaded()

    @staticmethod
    def memory(args: TorchRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
        """What a rank will hold."""
        return memory(args, model, use)

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        """Load the model and make everything ready for the first step.

        Of several ranks rank 0 alone reads the weights, into host memory.
        """
        self._ranks = ranks = Ranks.join(self.args.distributed_timeout_minutes)
        seed_all(self.args.seed)
        if ranks.device.type == "cpu":
            keep_freed_memory("train backend")
        option = option_of(self.args)
        folder = self.args.ref_load or self.args.hf_checkpoint
        with ranks.together():
            check_checkpoint(self.args.hf_checkpoint)
            require_recipe(self.args, self._components, folder, role, ranks.device)
            tokenizer = load_tokenizer(self.args.hf_checkpoint)
            if ranks.rank == 0:
                quantised = self._components.quantised.get(folder) if self._components else None
                model = load_model(folder, ranks.device if ranks.size == 1 else HOST, option, quantised)
                require_tied(folder, bool(getattr(model.config, "tie_word_embeddings", False)), option)
            else:
                model = empty_model(folder, option)
            require_rows(tokenizer, vocabulary_size(model), option)
        self.attach(model, loss, total_steps, role, tokenizer, folder)

    def attach(
        self,
        model: PreTrainedModel,
        loss: LossFunction,
        total_steps: int,
        role: Role = "actor",
        tokenizer: PreTrainedTokenizerBase | None = None,
        folder: str | None = None,
    ) -> None:
        """Train a model that is already in memory, in the dtype that it has and without its dropout. Of several ranks, rank 0's weights
        count.

        Args:
            tokenizer: is exported with the model.
            folder: the checkpoint that a critic's head is read from, if it has one.
        """
        self._ranks = ranks = Ranks.join(self.args.distributed_timeout_minutes)
        self.data_parallel_size = ranks.size
        self.model, self.loss, self.tokenizer = model, loss, tokenizer
        self.shares_prompts = not looks_at_length(model)
        check_device(ranks.device, self.args)
        processor = None
        with ranks.together():
            if self.args.gradient_checkpointing and role != "reference":
                require_gradient_checkpointing(model)
            if is_vision_model(model.config):
                processor = processor_of(self.args)
                if processor is None:
                    raise ArgumentError(
                        f"--hf-checkpoint {self.args.hf_checkpoint} is no checkpoint of a model that reads images."
                    )
            self._configured_dropout = dropout.turn_off(model)
            on_cpu = (model if ranks.size == 1 else ranks).device.type == "cpu"
            prepare(model, processor, [speed_up_norms, *([keep_less] if on_cpu else [])])
            value_head = add_value_head(model, folder) if role == "critic" else None
            # After `prepare`, which compares with the model's own numbers.
            recipe = recipe_of(self.args, self._components, layers_of(model.config), role)
            keeps = ranks.size == 1 and role != "reference" and not self.args.gradient_checkpointing
            self._low_precision = LowPrecision(model, recipe, computing(self.args, ranks.device), keep=keeps)
            self._rounded = RoundedWeights(torch.bfloat16, keeps)
            if ranks.device.type == "cuda":
                group_experts(model, ranks.device, self._rounded if ranks.size == 1 else None)
            self._wants_entropy = role == "actor" and "entropy" in what_reads(loss, self.args)
            if role == "reference":
                model.requires_grad_(False).train(False)
            elif self.args.lora_rank:
                lora.add_adapters(model, self.args)
            else:
                freeze(model, self.args)
            device = model.device if ranks.size == 1 else ranks.device
            fused = fuses(self.args, device.type == "cuda") and kernels_are_right(device)
            if fused:
                fuse_layers(model, self._rounded, device)
            speed_up_products(model)  # those that are left in high precision, an adapter's included
        self._sharded = None
        if ranks.size == 1 and model.device.type == "cpu":
            keep_embedding_gradients_sparse(model)
        if ranks.size > 1:
            self._sharded = Sharded(model, ranks, self.args.fsdp_reshard_after_forward)
            torch.manual_seed(self.args.seed + ranks.rank)  # each rank drops out its own
        if self.args.compile_layers:
            compile_layers(model)
        vision = None if processor is None else Vision(model, processor)
        self._predictor = Predictor(
            model, self.args, self._sharded, value_head, vision, rounded=self._rounded if fused else None
        )
        if role == "reference":
            return
        if self.args.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        self._schedule = Schedule.from_args(self.args, total_steps)
        self.optimizer = build_optimizer(self.args, model)
        self._kept = KeptWeights(dict(model.named_parameters()), local)
        self._step = 0

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens, 0.0 where none is trained or computed.

        The operations are those of `train_step`, so the numbers are its numbers, bit for bit, unless adapters have
        dropout or the model's training mode brings another noise: that is off here.
        """
        return self._per_token(batch)

    def values(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """A critic's predictions, shaped like `log_probs` and as exact."""
        return self._per_token(batch)

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """Take one optimizer step on the global batch.

        Parameters that nothing reached have the gradient 0, so a step without any micro-batch is the step that a batch
        of gradient 0 takes: weights decay and the optimizer's means move on.
        """
        with deterministic(self.args):
            return self._train_step(batch)

    def _train_step(self, batch: TrainBatch) -> dict[str, float]:
        optimizer, ranks = self._trained()
        self.model.train()
        optimizer.zero_grad()
        *others, last = self._own(batch)
        with self._unchanged():
            outputs = [self._forward_backward(batch, micro_batch, last=False) for micro_batch in others]
            outputs.append(self._forward_backward(batch, last))
        gradients = gradients_of(self.model)
        squares = squares_of(gradients)  # before anything is read: until here a GPU is never waited for
        losses, metrics = gather_outputs(outputs, ranks)
        try:
            require_finite_losses(batch, losses, self._step)
            norm = norm_of(squares, ranks)
            require_finite_gradient(batch, norm, self._step, lambda number: self._norm_alone(batch, number))
        except TrainingError:
            optimizer.zero_grad()
            raise
        lr = self._schedule.lr_at(self._step)
        clip(gradients, norm, self.args.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with on_device(optimizer) if self.args.optimizer_cpu_offload else nullcontext():
            optimizer.step()
        self._low_precision.end_step(ranks)
        self._step += 1
        return step_metrics(batch, losses, metrics, norm, lr)

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        """The loss on `batch` and its metrics, without training. Leaves no trace."""
        with self._without_trace():
            found = [self._forward(batch, micro_batch) for micro_batch in self._own(batch)]
        losses, metrics = gather_outputs([(outputs.loss, outputs.metrics) for outputs in found], self._joined())
        return {"loss": sum(losses), **metrics}

    def reference(self) -> lora.BaseModel | None:
        """With LoRA, the reference model of a KL term, in the memory of this one. None: it takes a backend of its
        own."""
        return lora.BaseModel(self) if self.args.lora_rank else None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face names, detached, tied ones once, and the buffers that a checkpoint
        stores. With LoRA: merged.

        All ranks iterate together, and each parameter is put together when its turn comes. The gradient of the last step is not kept:
        the engine that gets the weights can use its memory.
        """
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        yield from lora.merged_parameters(self.model, whole)
        yield from export.stored_buffers(self.model)

    def gradients(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor]]:
        """The gradient of the loss on `batch` of every trained parameter, under its Hugging Face name, whole. With LoRA
        none: what is trained then has no such name. All ranks iterate together."""
        optimizer, _ = self._trained()
        was_training = self.model.training
        self.model.train(False)
        optimizer.zero_grad()
        try:
            *others, last = self._own(batch)
            with torch.enable_grad(), deterministic(self.args), self._unchanged():
                for micro_batch in others:
                    self._forward_backward(batch, micro_batch, last=False)
                self._forward_backward(batch, last)
            gradients_of(self.model)
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and not self.args.lora_rank:
                    yield name, whole(parameter.grad)
        finally:
            optimizer.zero_grad()
            self.model.train(was_training)

    def reset_optimizer(self) -> None:
        """Let the next step be the first one for the optimizer."""
        forget_steps(self._trained()[0])

    def save_state(self, path: Path) -> None:
        """Write trained weights and copies of them, optimizer, schedule and random states. With `--async-save` they are copied to host
        memory and written while training goes on."""
        optimizer, _ = self._trained()
        found = state.collect(self.model, optimizer, self._step, whole=state.is_whole(self.args))
        found |= state.collect_kept(self._kept.copies)
        self._saver.save(path, found, background=self.args.async_save)

    def saved(self, wait: bool = True) -> bool:
        """Whether the last `save_state` is on disk; raises what kept it from getting there."""
        return self._saver.saved(wait)

    def load_state(self, path: Path) -> None:
        """Restore what `save_state` wrote, bit for bit."""
        optimizer, _ = self._trained()
        self._step = state.load(path, self.model, optimizer, whole=state.is_whole(self.args))
        self._kept.bring_back(state.load_kept(path, self.model))
        if self.args.optimizer_cpu_offload:
            move_state(optimizer, HOST)

    def export_hf(self, path: Path) -> None:
        """Write a Hugging Face checkpoint. With LoRA: the merged model, and in the folder `adapter` the adapter."""
        with dropout.as_configured(self._configured_dropout):
            export.export_hf(self.model, self.tokenizer, path, self._joined(), self.args)

    def export_state(
        self, state: Path, path: Path, quantised: Mapping[str, QuantisedCheckpoint], adapter_only: bool = False
    ) -> None:
        """Write the Hugging Face checkpoint of a training state that any number of ranks wrote. No model is set up for it."""
        stored_export.export_state(self.args, state, path, quantised, adapter_only)

    def offload(self) -> None:
        """Give back the GPU's memory until `onload`. What lay there waits in host memory, but for the gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        self._offloaded.leave(held(self.model, self.optimizer), self.model.device)

    def onload(self) -> None:
        """Take the GPU's memory again: everything is as it was before `offload`, bit for bit."""
        self._offloaded.come_back()

    def close(self) -> None:
        """Leave the process group of the training ranks, if there is one; the models of a process share it."""
        if self._ranks is not None:
            self._ranks.leave()

    # ---------------------------------------------------------------------------------------------------- computation

    def _joined(self) -> Ranks:
        if self._ranks is None:
            raise RuntimeError("This model has not been set up.")
        return self._ranks

    def _trained(self) -> tuple[torch.optim.Optimizer, Ranks]:
        if self.optimizer is None:
            raise RuntimeError("This model has no optimizer: it is a reference model, or has not been set up.")
        return self.optimizer, self._joined()

    def _own(self, batch: TrainBatch) -> Sequence[Sequence[int]]:
        """What this rank computes: at least one micro-batch, so that the loss names its metrics where there is none."""
        ranks = self._joined()
        if ranks.size > 1:  # a sample that cannot be packed must stop all ranks, not the one that has it
            computed = [batch.samples[i] for micro_batch in batch.micro_batches for i in micro_batch]
            check_samples(computed, vocabulary_size(self.model))
            self._predictor.check(computed)
        return batch.of_rank(ranks.rank, ranks.size) or [[]]

    def _forward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> LossOutputs:
        """This micro-batch's share of the loss and of the loss's metrics."""
        row = self._predictor.pack(batch, micro_batch)
        predicted, entropy = self._predictor.predict(row, batch.temperature, self._wants_entropy)
        critic = self._predictor.value_head is not None
        outputs = self.loss(self.args, loss_inputs(batch, micro_batch, row, predicted, entropy, critic=critic))
        if self._sharded is None:
            return outputs
        # All ranks go backward, even from a loss without a gradient.
        return LossOutputs(outputs.loss + predicted[:0].sum(), outputs.metrics)

    def _forward_backward(
        self, batch: TrainBatch, micro_batch: Sequence[int], last: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add to the gradients, which are complete on all ranks after the `last` micro-batch of a step."""
        with self._low_precision.noted(batch, micro_batch):
            outputs = self._forward(batch, micro_batch)
            if self._sharded is not None:
                self._sharded.backward(outputs.loss, last)
            elif outputs.loss.requires_grad:  # not so when none of its tokens is trained
                outputs.loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return outputs.loss.detach(), outputs.metrics

    def _norm_alone(self, batch: TrainBatch, number: int) -> float:
        """The norm of the gradient of one micro-batch of the global batch alone."""
        optimizer, ranks = self._trained()
        optimizer.zero_grad()
        own = number % ranks.size == ranks.rank
        self._forward_backward(batch, batch.micro_batches[number] if own else [])
        return gradient_norm(gradients_of(self.model), ranks)

    def _per_token(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        with self._without_trace():
            computed = [
                (micro_batch, self._predictor.predict(self._predictor.pack(batch, micro_batch), batch.temperature)[0])
                for micro_batch in self._own(batch)
            ]
        return response_values(batch, computed, self._joined())

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """No weight changes inside of this context: what products make of weights is made once."""
        with self._rounded.unchanged(), self._low_precision.unchanged():
            yield

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        was_training, before = self.model.training, random_states()
        self.model.train(False)
        try:
            with torch.no_grad(), deterministic(self.args), self._unchanged():
                yield
        finally:
            set_random_states(before)
            self.model.train(was_training)
            if self._sharded is not None:
                self._sharded.reshard_all()
