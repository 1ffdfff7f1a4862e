"""`ParityWorker`: one training rank of `slime check --parity`. It sets the train backend up as a run does and compares what
it computes with what transformers computes. Driven by `slime_core.run.parity` through a handle.

All ranks get the same calls. The first one has transformers' model, in host memory, and compares; what the others return
does not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from slime_core.arguments import RunArguments
from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.train_backend import DataParallel, GivesGradients, TrainBackend, TrainBatch
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError
from slime_core.sample import Sample
from slime_core.tensors.explanations import Explanation, explain
from slime_core.tensors.parity import (
    Compared,
    Limits,
    compare_checkpoint,
    compare_gradients,
    compare_log_probs,
    compare_weights,
)
from slime_core.tensors.truth import Truth
from slime_core.training.batches import make_train_batch
from slime_core.training.components import TrainComponents

_NOBODYS = Compared("", 0, 0, 0, "")
_EXPLAINED = 4
"""How many of the shortest samples with wrong log-probs a mistake has to explain."""


class ParityWorker:
    """The train backend in this process and, in the first rank, transformers' model."""

    def __init__(self, args: RunArguments, components: TrainComponents) -> None:
        # What differs between a backend and transformers in FP8 is FP8.
        self._args, self._components = args.model_copy(update={"fp8_format": None}), components
        self._limits = Limits.of(args.bf16)
        self._first = os.environ.get("RANK", "0") == "0"
        self._truth: Truth | None = None
        self._backend: TrainBackend = components.train_backend.bind(components=components)(self._args)
        self._ranks = 1
        self._given: Sequence[Sequence[float]] = ()

    def read_checkpoint(self) -> Compared:
        """Load transformers' model, and find out whether the checkpoint has all of its tensors."""
        if not self._first:
            return _NOBODYS
        started, args = time.perf_counter(), self._args
        folder, option = args.ref_load or args.hf_checkpoint, "--ref-load" if args.ref_load else "--hf-checkpoint"
        processor = processor_of(args)
        self._truth = Truth(folder, option, self._components.quantised.get(folder), processor)
        return compare_checkpoint(self._truth, folder, started)

    def setup(self) -> int:
        """Set the backend up with the negative log-likelihood as its loss, and return the number of data-parallel ranks."""
        self._backend.setup(negative_log_likelihood, 1)
        if isinstance(self._backend, DataParallel):
            self._ranks = self._backend.data_parallel_size
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ArgumentError(
                f"The {self._components.train_backend.label} trains in one process (it has no data_parallel_size), but the "
                "run has several training ranks."
            )
        return self._ranks

    def weights(self) -> Compared:
        """Compare all weights with the checkpoint, bit for bit."""
        if self._truth is not None:
            return compare_weights(self._backend.weights(), self._truth)
        for _ in self._backend.weights():
            pass
        return _NOBODYS

    def log_probs(self, samples: Sequence[Sample], together: bool) -> Compared:
        """Compare the log-probs of the trained tokens.

        Args:
            together: each rank packs its samples into one micro-batch; False: each sample is a micro-batch.
        """
        started = time.perf_counter()
        self._given = self._backend.log_probs(self._batch(samples, together))
        if self._truth is None:
            return _NOBODYS
        found = compare_log_probs(samples, self._given, self._truth.log_probs(samples), self._limits.log_probs)
        return replace(found, seconds=time.perf_counter() - started)

    def explain(self, samples: Sequence[Sample], layer: int | None) -> Explanation | None:
        """Find a mistake that gives the log-probs which `log_probs` found last.

        Args:
            samples: those that `log_probs` was given.
            layer: as in `slime_core.tensors.explanations.explain`.
        """
        if self._truth is None:
            return None
        limit = self._limits.log_probs
        right = self._truth.log_probs(samples)
        wrong = [
            (sample, own)
            for sample, own, other in zip(samples, self._given, right, strict=True)
            if not compare_log_probs([sample], [own], [other], limit).ok
        ]
        few = sorted(wrong, key=lambda pair: len(pair[0].tokens))[:_EXPLAINED]
        return explain(self._truth, [sample for sample, _ in few], [own for _, own in few], limit, layer)

    def gradients(self, samples: Sequence[Sample], few: bool, together: bool) -> Compared:
        """Compare the gradients of the mean negative log-likelihood of the trained tokens.

        Args:
            few: of the layers only the first, one in the middle and the last.
            together: as in `log_probs`.
        """
        started, batch = time.perf_counter(), self._batch(samples, together)
        assert isinstance(self._backend, GivesGradients)  # whoever calls has looked
        if self._truth is None:
            for _ in self._backend.gradients(batch):
                pass
            return _NOBODYS
        last = self._truth.layers - 1
        expected = self._truth.gradients(samples, batch.weights, (0, last // 2, last) if few else None)
        found = compare_gradients(self._backend.gradients(batch), expected, self._truth, self._limits.gradients)
        return replace(found, seconds=time.perf_counter() - started)

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()

    def _batch(self, samples: Sequence[Sample], together: bool) -> TrainBatch:
        size = -(-len(samples) // self._ranks) if together else 1
        return make_train_batch(samples, mean="token", micro_batch_size=size, ranks=self._ranks)


def negative_log_likelihood(args: RunArguments, inputs: LossInputs) -> LossOutputs:
    """The mean negative log-likelihood of the trained tokens."""
    return LossOutputs(inputs.reduce(-inputs.log_probs))
