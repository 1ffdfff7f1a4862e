"""Train backends: what trains the model, the batch that it is given, and the further abilities that one may have.

A backend is made for each model of a training process (actor, reference, critic) as `TrainBackend(args)` and then driven
by the loop through its methods, one call at a time. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from slime_core.contracts.engine import Offloads
from slime_core.contracts.kind import Kind
from slime_core.contracts.memory import EstimatesMemory
from slime_core.sample import Sample
from slime_core.token_arrays import num_tokens, num_trained, prompt_ids, same_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments
    from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
    from slime_core.contracts.loss import LossFunction

Role = Literal["actor", "critic", "reference"]


@dataclass(frozen=True)
class TrainBatch:
    """The data of one optimizer step over the global batch.

    Attributes:
        samples: the samples of the global batch.
        micro_batches: indices into `samples`, one list per micro-batch. Samples in none of them are not computed.
        weights: per sample, the weight of each of its trained tokens in the loss; see `token_weights`.
        measured: the same over the samples in `micro_batches` alone: for diagnostics that need the model's output.
        divisor: see `slime_core.contracts.loss.Responses`.
        columns: further per-token values such as "advantages"; per sample `response_length` floats, in a list or in what reads like
            one (`slime_core.token_columns`). Named like the fields of `slime_core.contracts.loss.LossInputs`.
        temperature: the logits are divided by it before log-probs are taken, as they were when the tokens were sampled.
        share_prompts: compute the prompt of neighbouring samples with the same group and prompt once.
    """

    samples: Sequence[Sample]
    micro_batches: Sequence[Sequence[int]]
    weights: Sequence[float]
    measured: Sequence[float]
    columns: dict[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    temperature: float = 1.0
    share_prompts: bool = False
    divisor: float = 1.0

    def of_rank(self, rank: int, ranks: int) -> Sequence[Sequence[int]]:
        """The micro-batches that data-parallel rank `rank` of `ranks` computes, one of each round.

        Raises:
            ValueError: the batch was not made for so many ranks.
        """
        if len(self.micro_batches) % ranks:
            raise ValueError(f"{len(self.micro_batches)} micro-batches cannot be dealt to {ranks} ranks evenly.")
        return self.micro_batches[rank::ranks]

    @property
    def num_tokens(self) -> int:
        """The number of all tokens, prompt and response, of the global batch."""
        return sum(map(num_tokens, self.samples))

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens that are trained."""
        return sum(map(num_trained, self.samples))


def prompt_tokens(sample: Sample) -> list[int]:
    """The tokens before the response; `slime_core.token_arrays.prompt_ids` gives them without making a list."""
    found: list[int] = prompt_ids(sample).tolist()
    return found


def shared_runs(samples: Sequence[Sample], order: Sequence[int]) -> list[list[int]]:
    """`order` cut into runs of neighbours that have group and prompt in common, its images included."""
    found: list[list[int]] = []
    first: Sample | None = None
    for index in order:
        sample = samples[index]
        if first is None or not _shares_prompt(first, sample):
            first = sample
            found.append([])
        found[-1].append(index)
    return found


def _shares_prompt(one: Sample, other: Sample) -> bool:
    """Whether group and prompt are the same. Images of responses come last."""
    return one.group_index == other.group_index and same_prompt(one, other) and all(map(eq, one.images, other.images))


class TrainBackend(Protocol):
    """One model in training, with its optimizer and schedule.

    A backend that can train on several ranks is made in each of them, from the same arguments, and all get the same
    calls at the same time: a `TrainBatch` is the global batch, of which data-parallel rank r of N computes
    `batch.of_rank(r, N)`. Gradients and losses are summed over the ranks, and every rank returns the global result. The
    ranks find each other by the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    One that names the parameter `components` of `__init__` is given the run's `slime_core.training.components.TrainComponents`.
    Its further abilities are `DataParallel`, `ContextParallel`, `SharesPrompts`, `SavesInBackground`, `HasReference`,
    `ReplaysRouting`, `ResetsOptimizer`, `KeepsWeights`, `GivesGradients`, `ExportsStates`,
    `slime_core.contracts.memory.EstimatesMemory` and `slime_core.contracts.engine.Offloads`.
    """

    def __init__(self, args: RunArguments) -> None:
        """Keep the run's arguments. Must not load anything yet."""

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        """Load the tokenizer from `args.hf_checkpoint` and the model from `args.ref_load` or, without it, from there too (what is
        quantised in high precision: `TrainComponents.quantised` says how it is stored); build optimizer and schedule. An actor is given as `ref_load` what `--load` names, where that leads to weights of
        another program (`slime_core.training.initial_weights`).

        Args:
            loss: called as `loss(args, inputs)`; `slime_core.contracts.loss.what_reads` tells which inputs it wants.
            total_steps: optimizer steps in the whole run; the schedule's length unless `--lr-decay-iters` is given.
            role: "actor": a language model. "critic": the same model with a head that gives one number for each token
                in place of logits, new and zero where the checkpoint has none; its loss gets `values`. "reference": a
                language model that is never trained: no optimizer, no state to save.
        """

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens under the present weights, without training and without a trace.

        The same micro-batches give the same numbers, bit for bit, as the forward pass of `train_step` on `batch`.

        Returns:
            per sample of the batch `response_length` floats: 0.0 at untrained tokens and for samples in no micro-batch.
        """

    def values(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """A critic's predictions at the response tokens, shaped like `log_probs`. The value of a token is predicted
        from what precedes it."""

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on the global batch.

        Returns:
            metrics, at least "loss", "grad_norm" (before clipping) and "lr" (the rate used in this step).

        Raises:
            TrainingError: loss or gradients are NaN or Inf; names the samples; the weights are left unchanged. Raised
                on all ranks if it happens on one.
        """

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        """The selected loss on `batch` without training: "loss" and the loss's own metrics. Leaves no trace: random
        number generators, dropout mode and gradients are as they were."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face names, whole, detached, tied ones once; and the buffers that a checkpoint
        stores, such as a router's bias. All ranks iterate together, and get the same names, shapes and dtypes in the same
        order. The iterator may be left before its end, by all ranks alike."""

    def save_state(self, path: Path) -> None:
        """Write model, optimizer, schedule and random states into the (existing, empty) folder `path`: every rank its
        part."""

    def load_state(self, path: Path) -> None:
        """Restore what `save_state` wrote, bit for bit."""

    def export_hf(self, path: Path) -> None:
        """Write a Hugging Face checkpoint (weights, config, tokenizer, chat template) into the folder `path`. Of several
        ranks the first writes."""

    def close(self) -> None:
        """The run is over: leave the process group and give back what else is held. Called once in every rank, for each
        model, however the run ends."""


@runtime_checkable
class DataParallel(Protocol):
    """A backend that trains on several ranks; one without this trains in one process only.

    Attributes:
        data_parallel_size: N, how many ranks have a part of each batch. Known after `setup`.
    """

    data_parallel_size: int


@runtime_checkable
class SharesPrompts(Protocol):
    """A backend that computes the prompt of neighbouring samples once, where a batch says so.

    Attributes:
        shares_prompts: whether it does. The batches of a backend that does not have `TrainBatch.share_prompts` False.
    """

    shares_prompts: bool


@runtime_checkable
class ContextParallel(Protocol):
    """A backend that cuts every sequence over several ranks.

    Attributes:
        context_parallel_size: how many. A micro-batch then has so many times `--max-tokens-per-gpu` tokens. Known after
            `setup`.
    """

    context_parallel_size: int


@runtime_checkable
class SavesInBackground(Protocol):
    """A backend whose `save_state` may return before everything is written (`--async-save`)."""

    def saved(self, wait: bool = True) -> bool:
        """Whether what `save_state` began is on disk. Raises what kept it from getting there.

        Args:
            wait: return when it is.
        """
        raise NotImplementedError


@runtime_checkable
class ReplaysRouting(Protocol):
    """A backend that can let all optimizer steps of a rollout use the experts that the model chose before the first.

    Attributes:
        replays_routing: whether it does. If so, and a rollout has several steps, `remember_routing` is called on the batch of
            each of them before the first.
    """

    replays_routing: bool

    def remember_routing(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """As `TrainBackend.log_probs`, and every later `train_step` on these micro-batches repeats the experts that are chosen
        here, for each token."""
        raise NotImplementedError

    def forget_routing(self) -> None:
        """The rollout is over: experts are chosen again."""
        raise NotImplementedError


@runtime_checkable
class ResetsOptimizer(Protocol):
    """A backend whose optimizer can begin anew (`--reset-optimizer-states`)."""

    def reset_optimizer(self) -> None:
        """Let the next step be the first one for the optimizer: its means of gradients, and how many steps it has taken, are 0. The
        weights, copies of them in another dtype, and the schedule stay as they are."""
        raise NotImplementedError


@runtime_checkable
class KeepsWeights(Protocol):
    """A backend that can keep copies of its weights in host memory, and be for a while what it was with one of them
    (`--ref-update-interval`, `--keep-old-actor`, `--update-weights-interval`).

    `save_state` stores all copies. `load_state` brings back those that were stored, and no other is there afterwards. All ranks
    make the same calls.
    """

    def kept_weights(self) -> list[str]:
        """The names of the copies."""
        raise NotImplementedError

    def keep_weights(self, name: str) -> None:
        """Keep a copy of the present weights under a name of letters, digits and "-", in place of one that has it."""
        raise NotImplementedError

    def forget_weights(self, name: str) -> None:
        """Let a copy go; does nothing if there is none."""
        raise NotImplementedError

    def with_kept_weights(self, name: str) -> AbstractContextManager[None]:
        """A context in which `log_probs` and `weights` are those of the copy; afterwards all is as before, bit for bit."""
        raise NotImplementedError


class GivesLogProbs(Protocol):
    """What a reference model must be able to do."""

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens, as `TrainBackend.log_probs` returns them."""
        raise NotImplementedError


@runtime_checkable
class HasReference(Protocol):
    """A backend whose actor knows its own reference model, such as one that trains adapters."""

    def reference(self) -> GivesLogProbs | None:
        """The actor's reference model; None if it takes a backend of its own. Asked only where both begin with the same weights."""
        raise NotImplementedError


@runtime_checkable
class GivesGradients(Protocol):
    """A backend that tells its gradients, which `slime check --parity --gradients` compares with those of transformers."""

    def gradients(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor]]:
        """The gradient of the loss on `batch`, before clipping, of every trained parameter: under its Hugging Face name,
        whole, tied ones once. Nothing is dropped out, and weights and optimizer stay as they are. All ranks iterate
        together."""
        raise NotImplementedError


@runtime_checkable
class ExportsStates(Protocol):
    """A backend that makes a Hugging Face checkpoint of what `save_state` wrote, for `slime export`: without a run, in one process,
    whatever ranks wrote it. `setup` is not called before."""

    def export_state(
        self, state: Path, path: Path, quantised: Mapping[str, QuantisedCheckpoint], adapter_only: bool = False
    ) -> None:
        """Write what `load_state(state)` and `export_hf(path)` would write, with the same numbers, bit for bit.

        Args:
            state: the folder that `save_state` filled.
            path: an existing, empty folder.
            quantised: those of the folders that the run's options name that are quantised, by folder.
            adapter_only: write the adapter of a run with LoRA alone, as peft reads it, and the tokenizer.

        Raises:
            CheckpointError: the state is damaged, or of another model than `args.hf_checkpoint`.
        """
        raise NotImplementedError


KINDS = (
    Kind(
        "train_backend",
        "slime_train_backends",
        TrainBackend,
        ("--train-backend",),
        extras=("components",),
        abilities=(
            DataParallel,
            ContextParallel,
            SharesPrompts,
            SavesInBackground,
            HasReference,
            ReplaysRouting,
            ResetsOptimizer,
            KeepsWeights,
            GivesGradients,
            ExportsStates,
            Offloads,
            EstimatesMemory,
        ),
    ),
)
