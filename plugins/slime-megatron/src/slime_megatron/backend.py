"""`--train-backend megatron`: trains with megatron-core, cut over ranks by tensor, sequence, pipeline, context, expert and
data parallelism.

The loop of slime_core drives it through the methods of `slime_core.contracts.train_backend.TrainBackend`. It runs on CUDA
devices, or without any on CPUs over gloo, with the same code. Weights are float32, or bfloat16 with float32 copies under
--bf16; gradients are added up in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slime_core.contracts.loss import LossFunction, what_reads
from slime_core.contracts.memory import Holding, MemoryUse, ModelShape
from slime_core.contracts.train_backend import Role, TrainBatch
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import TrainingError
from slime_core.tensors.determinism import prepare as prepare_determinism
from slime_core.tensors.embedding import require_rows, require_tied
from slime_core.tensors.freed_memory import keep_freed_memory
from slime_core.tensors.kept_weights import HasKeptWeights, KeptWeights
from slime_core.tensors.leaving import leave_groups
from slime_core.tensors.low_precision import nothing_remembered
from slime_core.tensors.micro_batches import step_metrics
from slime_core.tensors.not_finite import require_finite_gradient, require_finite_losses
from slime_core.tensors.offload import check_device
from slime_core.tensors.quantised_weights import in_high_precision
from slime_core.tensors.random_states import seed_all
from slime_core.tensors.ranks import Ranks
from slime_core.training.initial_weights import option_of
from slime_core.training.precision import recipe_of
from slime_core.training.schedule import Schedule
from slime_megatron import device as devices
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.memory import memory
from slime_megatron.te_probe import require_usable

if TYPE_CHECKING:
    from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
    from slime_core.training.components import TrainComponents
    from slime_megatron import lora
    from slime_megatron.computation import Computation
    from slime_megatron.routing_replay import RoutingReplay
    from slime_megatron.saving import Saver

logger = logging.getLogger(__name__)


class MegatronBackend(HasKeptWeights):
    """One model in training, as `slime_core.contracts.train_backend.TrainBackend` describes it.

    Attributes:
        data_parallel_size: ranks that compute different samples, known after `setup`.
        context_parallel_size: ranks that share each sequence, known after `setup`.
        replays_routing: all steps of a rollout use the experts that were chosen before the first.
    """

    def __init__(self, args: MegatronRunArguments, components: TrainComponents | None = None) -> None:
        prepare_determinism(args)
        self.args, self._components = args, components
        self.data_parallel_size = self.context_parallel_size = 1
        self.replays_routing = args.use_routing_replay
        self._optimizer: Any = None
        self._saver: Saver | None = None

    @staticmethod
    def memory(args: MegatronRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
        """What the rank will hold that holds most."""
        return memory(args, model, use)

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        """Read the configuration, build this rank's part of the model, fill it from the checkpoint, make the optimizer."""
        args = self.args
        require_usable(args.transformer_impl)
        device = devices.prepare()  # before megatron-core is imported
        check_device(device, args)
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        from slime_megatron import (
            checkpoint_files,
            configuration,
            frozen,
            lora,
            low_precision,
            model,
            offload,
            optimizer,
            routing_replay,
            te_layers,
            weights,
        )
        from slime_megatron.computation import Computation
        from slime_megatron.layout import ParallelLayout, start_alone
        from slime_megatron.pipeline import Pipeline
        from slime_megatron.predictor import Predictor
        from slime_megatron.weight_files import open_weights

        self._world = world = Ranks.join(args.distributed_timeout_minutes)
        if world.size == 1:
            start_alone()
        folder = args.ref_load or args.hf_checkpoint
        with world.together():
            self._tokenizer = load_tokenizer(args.hf_checkpoint)
            config = checkpoint_files.read_config(args.hf_checkpoint)
            if self._quantised(args.hf_checkpoint) is not None:
                config = in_high_precision(config)
            require_rows(self._tokenizer, config.vocab_size, option_of(args))
            if world.rank == 0:
                require_tied(folder, bool(getattr(config, "tie_word_embeddings", False)), option_of(args))
            layout = ParallelLayout.of(args, world.size, _experts_of(config))
            spec = configuration.read_spec(config, f"--hf-checkpoint {args.hf_checkpoint}", args, layout.tensor)
            make_recipe = partial(recipe_of, args, self._components, spec.config["num_layers"], role)
            engine = te_layers.chosen(args)
            recipe = te_layers.prepare_low_precision(make_recipe, device) if engine else make_recipe()
            if engine and recipe is not None:
                layout = replace(layout, tokens=recipe.row_multiple())
            layout.start()
        for remark in spec.remarks if role == "actor" and world.rank == 0 else ():
            logger.warning(remark)
        seed_all(args.seed)
        if device.type == "cpu":
            keep_freed_memory("train backend")
        model_parallel_cuda_manual_seed(args.seed)
        group = parallel_state.get_data_parallel_group()
        self._ranks = Ranks(group.rank(), group.size(), device, group if world.size > 1 else None)
        self.data_parallel_size, self.context_parallel_size = group.size(), layout.context
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        with world.together():
            fields = te_layers.low_precision_fields(args, recipe if engine else None)
            self._model = built = model.build(spec, config.vocab_size, layout, args, dtype, fields)
            if args.lora_rank and role != "reference":
                lora.add_adapters(built, config, args)
            weights.mark_split_weights(built)
            if recipe is not None and not engine:
                low_precision.swap_linears(built, recipe)
            head = model.add_value_head(built) if role == "critic" else None
            if role != "reference":
                frozen.freeze(built, args)
            with open_weights(folder, option_of(args), spec, self._quantised(folder)) as reader:
                weights.load(built, reader.read)
            built.module.to(device)
        self._routing: RoutingReplay | None = None
        if self.replays_routing and role == "actor":
            self._routing = routing_replay.RoutingReplay(built.module)
        if role == "reference":
            # Its weights go on asking for gradients, though none are ever taken: torch multiplies by others in another way,
            # more slowly, and the reference's log-probs would differ from the actor's in their last digits.
            built.module.train(False)
            self._wrapped: nn.Module = built.module
        else:
            self._wrapped = optimizer.wrap(built.module, args)
            self._optimizer = optimizer.build(self._wrapped, args, dtype)
            self._schedule = Schedule.from_args(args, total_steps)
            self._kept = KeptWeights(dict(built.module.named_parameters()))
        self._offloaded = offload.OffloadedModel(self._wrapped, self._optimizer, device)
        predictor = Predictor(built, layout, args.log_probs_chunk_size, head)
        self._computation: Computation = Computation(
            args,
            built.vocab_size,
            self._wrapped,
            predictor,
            Pipeline(built, self._wrapped, layout, predictor),
            self._ranks,
            loss,
            wants_entropy=role == "actor" and "entropy" in what_reads(loss, args),
            routing=self._routing,
        )
        self._step = 0

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens, 0.0 where none is trained or computed."""
        return self._computation.per_token(batch)

    def remember_routing(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """As `log_probs`; every `train_step` on these micro-batches repeats the experts chosen here."""
        if self._routing is None:
            raise RuntimeError(
                "This model does not repeat experts: --use-routing-replay is not given, or it is no actor."
            )
        with self._routing.remembering(batch) as before:
            return self._computation.per_token(batch, before)

    def forget_routing(self) -> None:
        """Let the router choose again."""
        if self._routing is not None:
            self._routing.forget()

    def values(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """A critic's predictions, shaped like `log_probs`."""
        return self._computation.per_token(batch)

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """Take one optimizer step on the global batch."""
        from slime_megatron import low_precision
        from slime_megatron.optimizer import on_device

        optimizer = self._trained()
        self._wrapped.train()
        self._zero_grad()
        losses, metrics = self._computation.forward_backward(batch, self._computation.own(batch))
        try:
            require_finite_losses(batch, losses, self._step)
            norm = self._norm()
            require_finite_gradient(batch, norm, self._step, lambda number: self._norm_alone(batch, number))
        except TrainingError:
            self._zero_grad()
            raise
        lr = self._schedule.lr_at(self._step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self.args.weight_decay * group["wd_mult"]
        with on_device(optimizer, self.args.optimizer_cpu_offload):
            optimizer.step()
        low_precision.end_step(self._model.module)
        self._step += 1
        return step_metrics(batch, losses, metrics, norm, lr)

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        """The loss on `batch` and its metrics, without training. Leaves no trace."""
        losses, metrics = self._computation.forward(batch)
        return {"loss": sum(losses), **metrics}

    def reference(self) -> lora.BaseModel | None:
        """With LoRA, the reference model of a KL term, in the memory of this one. None: it takes a backend of its own."""
        from slime_megatron import lora

        return lora.BaseModel(self, self._model.module) if self.args.lora_rank else None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face names, whole, detached, tied ones once. With LoRA: merged. All ranks iterate
        together."""
        from slime_megatron import lora, weights

        return lora.merged(self._model, self.args) if self.args.lora_rank else weights.gather(self._model)

    def gradients(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor]]:
        """The gradient of the loss on `batch` of every trained parameter, under its Hugging Face name, whole. With LoRA none:
        what is trained then has no such name. All ranks iterate together."""
        from slime_megatron import gradients, weights

        was_training = self._wrapped.training
        self._wrapped.train()
        self._zero_grad()
        try:
            with torch.enable_grad(), nothing_remembered(self._model.module):
                self._computation.forward_backward(batch, self._computation.own(batch))
            gradients.complete(self._wrapped)
            if not self.args.lora_rank:
                yield from weights.gather(self._model, gradients.own(self._model))
        finally:
            self._zero_grad()
            self._wrapped.train(was_training)

    def reset_optimizer(self) -> None:
        """Let the next step be the first one for the optimizer."""
        from slime_megatron.optimizer import forget_steps

        forget_steps(self._trained())

    def save_state(self, path: Path) -> None:
        """Write this rank's part of model, optimizer, random states and copies of weights; see `slime_megatron.state`."""
        from slime_megatron import state
        from slime_megatron.optimizer import on_device
        from slime_megatron.saving import Saver

        self._saver = self._saver or Saver()
        with on_device(self._trained(), self.args.optimizer_cpu_offload):
            parts = self._model, self._wrapped, self._trained()
            state.save_kept(path, self._model, self._wrapped, self._kept, self._saver)
            state.save(path, *parts, self._step, self._saver, self.args.async_save)

    def saved(self, wait: bool = True) -> bool:
        """Whether what `save_state` began is on disk; see `slime_megatron.saving`."""
        return self._saver is None or self._saver.saved(wait)

    def load_state(self, path: Path) -> None:
        """Restore what `save_state` wrote, also under another layout."""
        from slime_megatron import state
        from slime_megatron.optimizer import on_device

        with on_device(self._trained(), self.args.optimizer_cpu_offload):
            self._step = state.load(path, self._model, self._wrapped, self._trained())
            state.load_kept(path, self._model, self._wrapped, self._kept)

    def export_hf(self, path: Path) -> None:
        """Write a Hugging Face checkpoint, weight by weight. With LoRA: the merged model, and in the folder `adapter` the adapter.
        Of several ranks the first writes."""
        from slime_megatron import checkpoint_files, lora

        source = Path(self.args.hf_checkpoint)
        first = self._world.rank == 0
        extra, quantised = self._model.spec.extra_file_prefixes, self._quantised(self.args.hf_checkpoint)
        checkpoint_files.write(path, self.weights(), source, extra, write=first, quantised=quantised)
        if self.args.lora_rank:
            lora.save_adapter(self._model, self.args, path / "adapter", write=first)
        if first:
            self._tokenizer.save_pretrained(path)

    def export_state(
        self, state: Path, path: Path, quantised: Mapping[str, QuantisedCheckpoint], adapter_only: bool = False
    ) -> None:
        """Write the Hugging Face checkpoint of a training state that any layout wrote. No model is set up for it."""
        from slime_megatron import stored_export

        stored_export.export_state(self.args, state, path, quantised, adapter_only)

    def offload(self) -> None:
        """Give back the GPU's memory until `onload`. What lay there waits in host memory, but for the gradients."""
        self._offloaded.leave()

    def onload(self) -> None:
        """Take the GPU's memory again: everything is as it was before `offload`, bit for bit."""
        self._offloaded.come_back()

    def close(self) -> None:
        """End what still writes, let the model be freed, and leave the process groups; the models of a process share them."""
        if self._saver is not None:
            self._saver.close()
        if hasattr(self, "_wrapped"):
            from slime_megatron.optimizer import let_go

            let_go(self._wrapped)
        from megatron.core import parallel_state

        if parallel_state.is_initialized():
            parallel_state.destroy_model_parallel()
        leave_groups()

    # ---------------------------------------------------------------------------------------------------- computation

    def _quantised(self, folder: str) -> QuantisedCheckpoint | None:
        """How a checkpoint stores its weights, if it is quantised."""
        return self._components.quantised.get(folder) if self._components is not None else None

    def _trained(self) -> Any:
        if self._optimizer is None:
            raise RuntimeError("This model has no optimizer: it is a reference model, or has not been set up.")
        return self._optimizer

    def _zero_grad(self) -> None:
        zero: Any = self._wrapped
        zero.zero_grad_buffer()
        self._trained().zero_grad()

    def _norm(self) -> float:
        """The norm of the gradient over all ranks."""
        optimizer = self._trained()
        optimizer.prepare_grads()
        return float(optimizer.get_grad_norm())

    def _norm_alone(self, batch: TrainBatch, number: int) -> float:
        """The norm of the gradient of one micro-batch of the global batch alone."""
        self._zero_grad()
        own = number % self._ranks.size == self._ranks.rank
        computation = self._computation
        computation.forward_backward(
            batch, [computation.micro_batch(batch, batch.micro_batches[number] if own else [])]
        )
        return self._norm()


def _experts_of(config: Any) -> int:
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    return next((int(n) for name in names if (n := getattr(config, name, None))), 0)
