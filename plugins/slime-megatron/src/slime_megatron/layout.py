"""`ParallelLayout`: how a model is cut over the training ranks, and which cuts are refused. The groups themselves are
megatron-core's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from slime_core.errors import ArgumentError
from slime_core.tensors.ranks import backends
from slime_megatron.arguments import MegatronArguments


@dataclass(frozen=True)
class ParallelLayout:
    """The sizes of all kinds of parallelism.

    Attributes:
        tensor, pipeline, context, expert: numbers of ranks.
        expert_tensor: tensor-parallel ranks inside an expert.
        sequence: activations between tensor-parallel layers are cut along the sequence.
        tokens: FP8 of the hardware wants a multiple of so many tokens on each rank.
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    sequence: bool = False
    tokens: int = 1

    @classmethod
    def of(cls, args: MegatronArguments, ranks: int, experts: int) -> ParallelLayout:
        """The layout that the arguments ask for.

        Args:
            ranks: training ranks in all.
            experts: of a layer; 0 for a dense model.

        Raises:
            ArgumentError: it does not fit the number of ranks, or would compute something wrong.
        """
        tensor, expert = args.tensor_model_parallel_size, args.expert_model_parallel_size
        expert_tensor = args.expert_tensor_parallel_size or (tensor if expert == 1 else 1)
        layout = cls(
            tensor,
            args.pipeline_model_parallel_size,
            args.context_parallel_size,
            expert,
            expert_tensor if experts else 1,
            args.sequence_parallel and tensor > 1,
        )
        layout._check(ranks, experts)
        return layout

    def _check(self, ranks: int, experts: int) -> None:
        model = self.tensor * self.pipeline * self.context
        if ranks % model:
            raise ArgumentError(
                f"--tensor-model-parallel-size {self.tensor} × --pipeline-model-parallel-size {self.pipeline} × "
                f"--context-parallel-size {self.context} = {model} does not divide the {ranks} training ranks "
                "(--actor-num-nodes × --actor-num-gpus-per-node)."
            )
        if self.expert > 1 and not experts:
            raise ArgumentError("--expert-model-parallel-size needs a model with experts; this one has none.")
        if not experts:
            return
        if experts % self.expert:
            raise ArgumentError(
                f"--expert-model-parallel-size {self.expert} does not divide the {experts} experts of a layer."
            )
        if (ranks // self.pipeline) % (self.expert * self.expert_tensor):
            raise ArgumentError(
                f"--expert-model-parallel-size {self.expert} × --expert-tensor-parallel-size {self.expert_tensor} does not "
                f"divide the {ranks // self.pipeline} ranks of a pipeline stage."
            )
        if self.expert == 1 and self.expert_tensor != self.tensor:
            raise ArgumentError(
                f"--expert-tensor-parallel-size {self.expert_tensor} differs from --tensor-model-parallel-size {self.tensor} "
                "while --expert-model-parallel-size is 1: megatron-core never adds up the gradients of the experts' copies "
                "on the tensor-parallel ranks. Make them equal, or cut the experts over ranks."
            )
        if self.tensor > 1 and not self.sequence:
            raise ArgumentError(
                "A model with experts under --tensor-model-parallel-size needs --sequence-parallel; megatron-core trains it "
                "no other way."
            )

    @property
    def sequence_multiple(self) -> int:
        """Every sequence of a packed row has a multiple of so many tokens."""
        return 2 * self.context if self.context > 1 else 1

    @property
    def row_multiple(self) -> int:
        """The packed row of one context-parallel rank has a multiple of so many tokens."""
        return self.tokens * (self.tensor if self.sequence else 1)

    def start(self) -> None:
        """Make megatron-core's groups, once in a process."""
        if parallel_state.is_initialized():
            return
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.tensor,
            pipeline_model_parallel_size=self.pipeline,
            context_parallel_size=self.context,
            expert_model_parallel_size=self.expert,
            expert_tensor_parallel_size=self.expert_tensor,
        )


def start_alone() -> None:
    """Let a single process be a group of one: megatron-core needs torch.distributed all the same."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]  # it has it
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dist.init_process_group(backends(device), store=store, rank=0, world_size=1)
