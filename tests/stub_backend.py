"""A second train backend, as a distribution of its own would bring it: the plugin, its options and its component in one
module. It is written with `slime_core` alone and trains a model of its own, in which each token predicts the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from slime_core import Lazy, hookimpl
from slime_core.arguments import RunArguments
from slime_core.contracts.loss import LossFunction, LossOutputs, what_reads
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.contracts.train_backend import Role, TrainBatch
from slime_core.data.tokenizer import load_tokenizer
from slime_core.tensors.linear_cross_entropy import Head, token_log_probs
from slime_core.tensors.micro_batches import gather_outputs, loss_inputs, pack_micro_batch, response_values
from slime_core.tensors.not_finite import require_finite_gradient, require_finite_losses
from slime_core.tensors.packed_rows import PackedRow
from slime_core.tensors.random_states import random_states, seed_all, set_random_states
from slime_core.tensors.ranks import Ranks
from slime_core.training.schedule import Schedule


class StubArguments(ArgumentGroup):
    """Stub backend"""

    stub_hidden_size: int = option(8, "Numbers that stand for a token.", ge=1)


class StubRunArguments(RunArguments, StubArguments):
    """The run's options with those of this package."""


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    return [StubArguments]


@hookimpl
def slime_train_backends() -> dict[str, Lazy]:
    reads = ("OptimizerArguments", "StubArguments")
    return {"stub": Lazy("stub_backend:StubBackend", "each token predicts the next", reads_options=reads)}


class StubBackend:
    """Trains an embedding and a head, in one process."""

    closed = 0

    def __init__(self, args: StubRunArguments) -> None:
        self.args = args

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        args = self.args
        self.ranks = Ranks.join(args.distributed_timeout_minutes)
        seed_all(args.seed)
        self.loss, self.entropy = loss, "entropy" in what_reads(loss, args)
        self.vocab_size = len(load_tokenizer(args.hf_checkpoint))
        width = args.stub_hidden_size
        self.model = nn.ModuleDict({"embedding": nn.Embedding(self.vocab_size, width)})
        self.model["head"] = nn.Linear(width, self.vocab_size, bias=False)
        self.schedule = Schedule.from_args(args, total_steps)
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), args.lr, betas, args.adam_eps, args.weight_decay)
        self.step = 0

    def log_probs(self, batch: TrainBatch) -> list[list[float]]:
        with torch.no_grad():
            computed = [(own, self._predict(batch, self._pack(batch, own))[0]) for own in batch.micro_batches]
        return response_values(batch, computed, self.ranks)

    def values(self, batch: TrainBatch) -> list[list[float]]:
        raise NotImplementedError("It has no critic.")

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        self.optimizer.zero_grad()
        outputs = [self._forward_backward(batch, own) for own in batch.micro_batches or [[]]]
        losses, metrics = gather_outputs(outputs, self.ranks)
        require_finite_losses(batch, losses, self.step)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad or torch.inf).item()
        require_finite_gradient(batch, norm, self.step, lambda number: torch.nan)
        lr = self.schedule.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        return {"loss": sum(losses), **metrics, "grad_norm": norm, "lr": lr}

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        with torch.no_grad():
            found = [self._forward(batch, own) for own in batch.micro_batches or [[]]]
        losses, metrics = gather_outputs([(outputs.loss, outputs.metrics) for outputs in found], self.ranks)
        return {"loss": sum(losses), **metrics}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def save_state(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "step": self.step, "random": random_states()}, path / "state.pt")

    def load_state(self, path: Path) -> None:
        state = torch.load(path / "state.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        set_random_states(state["random"])

    def export_hf(self, path: Path) -> None:
        raise NotImplementedError("It trains nothing that transformers could load.")

    def close(self) -> None:
        type(self).closed += 1
        self.ranks.leave()

    def _pack(self, batch: TrainBatch, micro_batch: Sequence[int]) -> PackedRow:
        return pack_micro_batch(batch, micro_batch, vocab_size=self.vocab_size)

    def _predict(self, batch: TrainBatch, row: PackedRow) -> tuple[Tensor, Tensor | None]:
        hidden = self.model["embedding"](row.input_ids[0])[row.predictors]
        head = Head(self.model["head"].weight)
        chunk_size, temperature = self.args.log_probs_chunk_size, batch.temperature
        if not len(hidden):
            return hidden.sum(1), hidden.sum(1) if self.entropy else None
        return token_log_probs(
            hidden, head, row.targets, temperature=temperature, entropy=self.entropy, chunk_size=chunk_size
        )

    def _forward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> LossOutputs:
        row = self._pack(batch, micro_batch)
        return self.loss(self.args, loss_inputs(batch, micro_batch, row, *self._predict(batch, row)))

    def _forward_backward(self, batch: TrainBatch, micro_batch: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = self._forward(batch, micro_batch)
        outputs.loss.backward()
        return outputs.loss.detach(), outputs.metrics
