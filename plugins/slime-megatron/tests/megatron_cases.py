"""Cases of training with megatron-core, each compared with what transformers computes.

One launch of ranks runs many cases, since starting it takes longer than most of them. Each rank compares its own part and
writes down how far it is off; the tests read that.
"""

from __future__ import annotations

import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from megatron_adapters import lora_options, start
from megatron_double import double_model, in_double
from megatron_models import make_arguments, make_batch, make_model, save
from megatron_ranks import launch, resolve
from megatron_truth import LOSSES, LR, STEPS, Loss, Truth, compute_truth
from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.train_backend import TrainBatch
from slime_core.tensors.packed_rows import trained_places
from slime_core.training.batches import Mean

T = TypeVar("T")
EVERY_CASE = bool(os.environ.get("SLIME_EVERY_CASE"))
"""Whether tests go through every combination of families, layouts and options. Else each of them is in one case at least, and in more
where families or options differ in what the layout cuts."""

LAUNCHES = 3
"""How often the ranks are started again for the cases that are left after one that ended them."""


@dataclass(frozen=True)
class Case:
    """One model in one layout, trained for a few steps.

    Attributes:
        model: one of `megatron_models.MODELS`.
        tensor, pipeline, context, data: numbers of ranks, whose product is that of all.
        expert: ranks of a pipeline stage that share the experts.
        sequence, distributed: sequence parallelism, and the distributed optimizer.
        loss, mean: what is minimised, and how it is averaged.
        options: further options of the backend.
        rows: the micro-batches, where they are not to be cut by their tokens.
        reference: a reference model is set up too.
        double: log-probs and gradients alone, in float64.
        whole: gradients are compared as the backend gives them out too, whole.
        lora: layers with an adapter, which alone is trained then.
        fault: import path of a context manager under which it runs, "module:name".
    """

    model: str
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    expert: int = 1
    sequence: bool = False
    distributed: bool = True
    loss: Loss = "policy"
    mean: Mean = "sample"
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[tuple[int, ...], ...] = ()
    reference: bool = False
    double: bool = False
    whole: bool = False
    lora: tuple[str, ...] = ()
    fault: str = ""

    def __str__(self) -> str:
        sizes = {
            "TP": self.tensor,
            "PP": self.pipeline,
            "CP": self.context,
            "EP": self.expert,
            "DP": self.data,
        }
        parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
        parts += ["SP"] if self.sequence else []
        parts += [] if self.distributed else ["whole optimizer"]
        parts += [f"{self.loss} per {self.mean}"] if (self.loss, self.mean) != ("policy", "sample") else []
        parts += [f"{name} {value}" for name, value in self.options.items()]
        parts += [f"{len(self.rows)} uneven micro-batches"] if self.rows else []
        parts += ["reference"] if self.reference else []
        parts += ["float64"] if self.double else []
        parts += ["whole gradients"] if self.whole else []
        parts += [f"adapters of {' '.join(self.lora)}"] if self.lora else []
        parts += [self.fault.partition(":")[2]] if self.fault else []
        return ", ".join([self.model, *parts])

    @property
    def ranks(self) -> int:
        """Training ranks in all."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def layout(self) -> tuple[Any, ...]:
        """What the ranks' groups depend on."""
        experts = "moe" in self.model or "deepseek" in self.model
        return self.tensor, self.pipeline, self.context, self.expert, experts

    @property
    def truth(self) -> str:
        """The name of the file with what transformers computes."""
        named = "".join(f" {option[:4]} {' '.join(patterns)}" for option, patterns in self.lists.items())
        return f"{', '.join([self.checkpoint, self.loss, self.mean, *self.lora])}{named}.pt"

    @property
    def lists(self) -> dict[str, list[str]]:
        """The lists among the options that say which parameters are trained."""
        return {name: value for name, value in self.options.items() if name.endswith("_params_name_list")}

    @property
    def checkpoint(self) -> str:
        """The name of the folder with the weights."""
        return f"{self.model}{', float64' if self.double else ''}"


def among(every: Sequence[T], *typical: T) -> Sequence[T]:
    """All of them where every case is gone through, else the typical ones."""
    return every if EVERY_CASE else typical


def prepare(case: Case, folder: Path) -> None:
    """Write the checkpoint of a case and what transformers computes with it, unless they are there."""
    if (folder / case.truth).is_file():
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, number_type = make_model(case.model), in_double if case.double else nullcontext
    with number_type():
        model = double_model(case.model, model) if case.double else model
    if not (folder / case.checkpoint).is_dir():
        save(model, folder / case.checkpoint)
    for option, patterns in case.lists.items():
        for name, parameter in model.named_parameters():
            named = any(re.search(pattern, name) for pattern in patterns)
            parameter.requires_grad_(named == option.startswith("only"))
    with number_type():
        compute_truth(model, case.loss, case.mean, case.lora).write(folder / case.truth)
    torch.set_num_threads(threads)


def run_cases(cases: Sequence[Case], folder: Path, timeout_s: float) -> dict[str, list[dict[str, Any]]]:
    """Run cases with equally many ranks, one after the other.

    Args:
        folder: has the checkpoints and files of `Case.checkpoint` and `Case.truth`.

    Returns:
        per case what `compare` found on each rank; {"error": …} where a rank failed or did not come that far.
    """
    (ranks,) = {case.ranks for case in cases}
    assert len({str(case) for case in cases}) == len(cases), "two cases have one name"
    found: dict[str, list[dict[str, Any]]] = {}
    end = time.monotonic() + timeout_s
    for _ in range(LAUNCHES):
        left = sorted((case for case in cases if str(case) not in found), key=lambda case: case.layout)
        if not left:
            break
        results = launch("megatron_cases:work", (left, folder), ranks, folder, end - time.monotonic())
        finished = {str(case) for case in left if all("error" not in r.get(str(case), {"error": 0}) for r in results)}
        found |= {name: [rank[name] for rank in results] for name in finished}
        if broken := next((case for case in left if str(case) not in finished), None):
            found[str(broken)] = [
                rank.get(str(broken), {"error": rank.get("error", "did not come that far")}) for rank in results
            ]
    return {str(case): found.get(str(case), [{"error": "the ranks ended before it"}]) for case in cases}


def work(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Any) -> None:
    """Compare one case after the other, as `in_turn` does."""
    in_turn(
        [(str(case), case, partial(compare_in_double if case.double else compare, case, folder)) for case in cases],
        found,
        note,
    )


def in_turn(
    cases: Iterable[tuple[str, Case, Callable[[], dict[str, Any]]]], found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Compare one case after the other, and note after each what was found and how long it took; an error ends it.

    Args:
        cases: each with its name among `found`, and what compares it. Those of one layout follow each other.
    """
    before = None
    for name, case, compare in cases:
        start = time.perf_counter()
        if before not in (None, case.layout):
            leave()
        before = case.layout
        try:
            found[name] = compare()
        except BaseException:
            found[name] = {"error": traceback.format_exc()}
            raise
        finally:
            note()
        found[name]["seconds"] = time.perf_counter() - start


def make_backend(case: Case, folder: Path, loss: Any = None, role: str = "actor", components: Any = None) -> Any:
    """The backend of a case, set up. The one before must have been left.

    Args:
        components: further components of the run.
    """
    from slime_megatron.backend import MegatronBackend

    options = {
        "hf_checkpoint": str(folder / case.checkpoint),
        "tensor_model_parallel_size": case.tensor,
        "pipeline_model_parallel_size": case.pipeline,
        "context_parallel_size": case.context,
        "expert_model_parallel_size": case.expert,
        "sequence_parallel": case.sequence,
        "use_distributed_optimizer": case.distributed,
        **(lora_options(case.lora) if case.lora else {}),
        **case.options,
    }
    backend = MegatronBackend(make_arguments(**options), components)
    backend.setup(loss or LOSSES[case.loss], 10, role)
    return backend


def forget(backend: Any) -> None:
    """Let a backend be freed when nothing else holds it, as `close` does, and keep the ranks together."""
    from slime_megatron.optimizer import let_go

    let_go(backend._wrapped)


def leave() -> None:
    """Let the next case cut the ranks into groups of its own. The ranks stay together.

    megatron-core forgets its groups without ending them, and each has threads of its own, which end when the last model that
    knows the group is gone.
    """
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    world = torch.distributed.group.WORLD
    for group in list(torch.distributed.distributed_c10d._world.pg_map):
        if group is not world:
            torch.distributed.destroy_process_group(group)
    gc.collect()


def planted(case: Case) -> AbstractContextManager[Any]:
    """The case's fault, if it has one."""
    context: AbstractContextManager[Any] = resolve(case.fault)() if case.fault else nullcontext()
    return context


class Recording:
    """A loss that keeps what it was given.

    Attributes:
        inputs: of each call with any trained token.
    """

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self.slime_reads = getattr(loss, "slime_reads", lambda args: ())
        self.inputs: list[LossInputs] = []

    def __call__(self, args: Any, inputs: LossInputs) -> LossOutputs:
        if len(inputs.log_probs):
            self.inputs.append(inputs)
        outputs: LossOutputs = self._loss(args, inputs)
        return outputs


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Train as the case says, and tell how far this rank's part is from what transformers computes.

    Returns:
        log_probs, entropies: largest difference, relative to the largest value; None where this rank has none.
        again: the loss was given the very log-probs that `log_probs` returns, and a reference model gives them too; with LoRA
            it gives those from before the adapters had numbers, also after the steps.
        loss, metrics: as computed, of the first step.
        gradients: by the rank's names, the largest difference relative to the largest value.
        whole: the same of all gradients, by names of the checkpoint, as the backend gives them out.
        losses, norms: of the steps.
        weights: by names of the checkpoint, the largest difference after the steps, relative to the learning rate.
        filling: the largest number, after the steps or in a gradient of the first, where a layout fills up a weight with zeros.
        loaded: names whose weights were not bit for bit those of the checkpoint before the steps, or not there; with LoRA also
            adapters that were not bit for bit as peft makes them.
    """
    truth = Truth.read(folder / case.truth)
    with planted(case):
        loss = Recording(LOSSES[case.loss])
        backend = make_backend(case, folder, loss)
        batch = make_batch(truth.columns, case.mean, backend.data_parallel_size, case.rows)
        found: dict[str, Any] = {"loaded": _differing(backend, folder / case.model)}
        plain = backend.log_probs(batch) if case.lora else None
        if case.lora:
            found["loaded"] += start(backend, truth.made, truth.given)
        log_probs = backend.log_probs(batch)
        found["log_probs"] = largest(_trained(batch, log_probs), truth.log_probs)
        found |= _recorded(backend, batch, loss, log_probs, truth)
        if case.reference:
            found["again"] &= make_backend(case, folder, role="reference").log_probs(batch) == (plain or log_probs)
        found["whole"] = dict(_whole_gradients(backend, batch, truth.gradients)) if case.whole else {}
        first, found["gradients"] = _first_step(backend, batch, truth.gradients)
        found["filling"] = filling(backend, truth.gradients, lambda parameter: parameter.main_grad)
        steps = [first, *(backend.train_step(batch) for _ in range(STEPS - 1))]
        found["filling"] = max(found["filling"], filling(backend, truth.weights, lambda parameter: parameter.detach()))
        found["losses"] = [step["loss"] for step in steps]
        found["norms"] = [step["grad_norm"] for step in steps]
        found["weights"] = {
            name: (weight - truth.weights[name]).abs().max().item() / LR for name, weight in _all_weights(backend)
        }
        if case.lora:
            found["again"] &= backend.reference().log_probs(batch) == plain
        forget(backend)
    return found


def compare_in_double(case: Case, folder: Path) -> dict[str, Any]:
    """Compute one batch as the case says, in float64, and tell how far this rank's part is from what transformers computes.
    There is no optimizer: megatron-core has none for float64.

    Returns:
        loss, log_probs, gradients: as in `compare`.
    """
    from slime_megatron import computation, device, optimizer

    truth = Truth.read(folder / case.truth)
    device.prepare()
    columns = mock.patch.object(
        computation, "_DTYPE", torch.float64
    )  # numpy makes them, which knows nothing of the context
    with in_double(), columns, mock.patch.object(optimizer, "build", return_value=None):
        backend = make_backend(case, folder)
        if (
            backend._model.module.config.moe_router_dtype
        ):  # by name, which a backward pass looks up outside of the context
            backend._model.module.config.moe_router_dtype = "fp64"
        batch = make_batch(truth.columns, case.mean, backend.data_parallel_size, case.rows)
        found: dict[str, Any] = {"log_probs": largest(_trained(batch, backend.log_probs(batch)), truth.log_probs)}
        backend._wrapped.train()
        losses, _ = backend._computation.forward_backward(batch, backend._computation.own(batch))
        found["loss"] = abs(sum(losses) - truth.loss)
        found["gradients"] = dict(_gradients(backend, truth.gradients))
        forget(backend)
    return found


def differences(truth: Truth, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `compare` found on a rank that is not as transformers computes it; nothing, where training is right.

    Log-probs and gradients are equal to 1e-6 and 5e-6 of the largest value of a tensor, weights after the steps to 2e-4 of a
    learning rate, where Adam's epsilon keeps it from making much of small gradients' last digits.
    """
    wanted = {
        "loss": pytest.approx(truth.loss, abs=1e-6),
        "metrics": pytest.approx(truth.metrics, abs=2e-6),
        "losses": pytest.approx(truth.losses, abs=2e-6),
        "norms": pytest.approx(truth.norms, rel=5e-6),
    }
    off = {name: f"{found[name]} in place of {value}" for name, value in wanted.items() if found[name] != value}
    limits = {"log_probs": 1e-6, "entropies": 2e-6}
    off |= {name: found[name] for name, limit in limits.items() if not (found[name] or 0.0) <= limit}
    for name, limit in {"gradients": 5e-6, "whole": 5e-6, "weights": 2e-4}.items():
        if large := {own: by for own, by in found[name].items() if not by <= limit}:
            off[name] = large
    exact = {"loaded": [], "again": True, "filling": 0.0}
    off |= {name: found[name] for name, right in exact.items() if found[name] != right}
    return off


def largest(found: Any, expected: Any) -> float:
    """The largest difference of nested lists of numbers, relative to the largest one expected."""
    a, b = (torch.tensor(list(_flat(values)), dtype=torch.float64) for values in (found, expected))
    assert a.shape == b.shape, f"{tuple(a.shape)} numbers in place of {tuple(b.shape)}"
    return ((a - b).abs().max() / b.abs().max()).item()


def _flat(values: Any) -> Iterator[float]:
    if isinstance(values, list):
        for value in values:
            yield from _flat(value)
    else:
        yield values


def _trained(batch: TrainBatch, rows: list[list[float]]) -> list[list[float]]:
    return [[row[j] for j in trained_places(sample)] for sample, row in zip(batch.samples, rows, strict=True)]


def _differing(backend: Any, folder: Path) -> list[str]:
    """Names whose weights are not those of the checkpoint, or that only one of the two knows."""
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    given = {name: weight.clone() for name, weight in backend.weights()}
    missing = stored.keys() ^ given.keys()
    return sorted(missing | {n for n in stored.keys() & given.keys() if not torch.equal(stored[n], given[n])})


LAST_BITS = 5e-7
"""How far log-probs that four tensor parallel ranks compute twice may be apart on a processor without AVX-512, relative to the largest.
Everywhere else they are the same to the bit."""


def _recorded(backend: Any, batch: TrainBatch, loss: Recording, log_probs: Any, truth: Truth) -> dict[str, Any]:
    """What the loss was given on this rank, and what became of it on all."""
    from megatron.core import parallel_state

    metrics = backend.evaluate(batch)
    found = {"loss": metrics.pop("loss"), "metrics": metrics, "entropies": None, "again": True}
    if not loss.inputs:  # not on the last stage
        return found
    own = batch.of_rank(parallel_state.get_data_parallel_rank(), backend.data_parallel_size)
    indices = [i for micro_batch in own for i in micro_batch if sum(batch.samples[i].trained_mask)]
    wanted = _trained(batch, log_probs)
    given = [inputs.log_probs.tolist() for inputs in loss.inputs]
    narrow = torch.backends.cpu.get_cpu_capability() != "AVX512"
    rounded = narrow and parallel_state.get_tensor_model_parallel_world_size() == 4
    found["again"] = largest(given, [wanted[i] for i in indices]) <= (LAST_BITS if rounded else 0.0)
    if loss.inputs[0].entropy is not None:
        entropies = [inputs.entropy.tolist() for inputs in loss.inputs if inputs.entropy is not None]
        found["entropies"] = largest(entropies, [truth.entropies[i] for i in indices])
    return found


def _first_step(
    backend: Any, batch: TrainBatch, expected: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    """Take an optimizer step; its metrics, and what `_gradients` finds in it before the gradient is clipped."""
    gradients: dict[str, float] = {}
    norm = backend._norm

    def look_and_measure() -> float:
        gradients.update(_gradients(backend, expected))
        measured: float = norm()
        return measured

    backend._norm = look_and_measure
    metrics: dict[str, float] = backend.train_step(batch)
    backend._norm = norm
    return metrics, gradients


def _whole_gradients(backend: Any, batch: TrainBatch, expected: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Every gradient that the backend gives out, and how far it is off, relative to its largest value."""
    left = set(expected)
    for name, found in backend.gradients(batch):
        left.remove(name)
        scale = expected[name].abs().max().item()
        difference = (found - expected[name]).abs().max().item()
        yield name, difference / scale if scale else difference * 1e6
    yield from ((name, float("inf")) for name in left)


def _gradients(backend: Any, expected: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Every trained parameter of this rank, and how far its gradient, complete over all ranks, is off, relative to its largest value."""
    from slime_megatron import gradients, weights

    gradients.complete(backend._wrapped)
    for name, parameter in weights.own_tensors(backend._model):
        if isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad:
            whole = _expected(backend, name, expected)
            scale = whole.abs().max().item()
            found: Tensor = parameter.main_grad  # type: ignore[attr-defined]  # megatron-core's
            difference = (found - whole).abs().max().item()
            yield name, difference / scale if scale else difference * 1e6  # where nothing is expected, nothing may be


def _all_weights(backend: Any) -> Iterator[tuple[str, Tensor]]:
    """The backend's weights, and the adapters from which they were merged."""
    from slime_megatron import lora

    yield from backend.weights()
    yield from lora.gather_adapters(backend._model)


def _expected(backend: Any, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """This rank's part of the tensor of a parameter."""
    from slime_megatron import weights

    rule, names = backend._model.names.of(weights.file_side(backend._model, name))
    whole = rule.layout.join([tensors[own] for own in names])
    shard: Tensor = rule.layout.shard(whole, *weights._cut(name))
    return shard


def filling(backend: Any, files: Mapping[str, Tensor], of: Callable[[Any], Tensor]) -> float:
    """The largest number in those places of this rank's parameters that are no part of the checkpoint's weights.

    Args:
        files: tensors with the shapes of the checkpoint's.
        of: gives the tensor of a parameter that is looked at.
    """
    from slime_megatron import weights

    real = {name: torch.ones_like(tensor) for name, tensor in files.items()}
    largest_found = 0.0
    for name, parameter in weights.own_tensors(backend._model):
        if isinstance(parameter, torch.nn.Parameter) and parameter.requires_grad:
            added = of(parameter)[_expected(backend, name, real) == 0]
            largest_found = max(largest_found, added.abs().max().item() if added.numel() else 0.0)
    return largest_found
