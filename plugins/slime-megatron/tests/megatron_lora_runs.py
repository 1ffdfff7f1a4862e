"""Faults that would train adapters wrongly in silence, and what has to be seen of adapters in the ranks themselves: exports, states
of training, refusals, a critic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from megatron_adapters import start
from megatron_cases import Case, forget, leave, make_backend, work
from megatron_models import make_batch
from megatron_truth import LOSSES, Truth
from safetensors.torch import load_file

from slime_core.contracts.loss import LossOutputs
from slime_core.errors import ArgumentError, CheckpointError

ALL = ("all-linear",)


@contextmanager
def adapters_not_marked() -> Iterator[None]:
    """Under sequence parallelism the copies of A and B keep the gradients of their own rank's tokens."""
    from slime_megatron.adapter import Adapter

    right = Adapter.__init__

    def make(self: Any, *args: Any) -> None:
        right(self, *args)
        for parameter in self.parameters():
            parameter.sequence_parallel = False

    with mock.patch.object(Adapter, "__init__", make):
        yield


@contextmanager
def products_with_a_not_summed() -> Iterator[None]:
    """The gradient of x A is that of this rank's rows of B."""
    from slime_megatron import adapter

    own = SimpleNamespace(apply=lambda x, group: x)
    with mock.patch.object(adapter, "SumGradient", own):
        yield


# --------------------------------------------------------------------------------------------------- seen in the ranks

FIRST = {"decoder_first_pipeline_num_layers": 2}
WAYS = {
    "the same layout": (Case("qwen3", tensor=2, lora=ALL), Case("qwen3", tensor=2, lora=ALL)),
    "another layout": (Case("glm4", tensor=2, lora=ALL), Case("glm4", pipeline=2, lora=ALL)),
    "heads that are not filled up": (
        Case("qwen3, 3 groups", tensor=2, lora=ALL),
        Case("qwen3, 3 groups", pipeline=2, lora=ALL),
    ),
}
"""A state is saved in the first case, and read in the second."""
EXPORTED = [
    Case("glm4_moe_lite", tensor=2, expert=2, sequence=True, lora=ALL),
    Case("qwen3", pipeline=2, options=FIRST, lora=("q_proj", "down_proj")),
]


def probe(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    """Compare the cases, and then look at what no comparison shows. Two ranks."""
    work(cases, folder, found, note)
    for case in EXPORTED:
        leave()
        _export(case, folder, found)
    found["resumed"] = {}
    for name, (saved, read) in WAYS.items():
        leave()
        found["resumed"][name] = _resume(saved, read, folder / f"state {name}")
        note()
    leave()
    found["refused"] = _refused(folder)
    found["critic"] = _critic(folder)


def command(words: Sequence[str], found: dict[str, Any], note: Callable[[], None]) -> None:
    """Run `slime` with these words in this process."""
    from slime_core.cli import main

    found["code"] = main(list(words))


def _export(case: Case, folder: Path, found: dict[str, Any]) -> None:
    """Write a model with adapters as Hugging Face's libraries read it."""
    truth = Truth.read(folder / case.truth)
    backend = make_backend(case, folder)
    start(backend, truth.made, truth.given)
    backend.export_hf(folder / f"exported {case.model}")
    state = folder / f"state of {case.model}"
    state.mkdir(exist_ok=True)
    torch.distributed.barrier()
    backend.save_state(state)
    found.setdefault("exported", []).append(exported_alike(backend, state))
    forget(backend)


def _resume(saved: Case, read: Case, folder: Path) -> dict[str, Any]:
    """Whether what is read is bit for bit what was saved; the losses when training goes on from it, and without a break; what the
    state holds of layers; what a model without adapters and one with others are refused with, and a run that is to start from it."""
    models, truth = folder.parent, Truth.read(folder.parent / saved.truth)
    backend = make_backend(saved, models, LOSSES["sft"])
    start(backend, truth.made, truth.given)
    batch = make_batch({}, ranks=backend.data_parallel_size)
    for _ in range(2):
        backend.train_step(batch)
    folder.mkdir(exist_ok=True)
    torch.distributed.barrier()
    backend.save_state(folder)
    exported = exported_alike(backend, folder)
    weights = {name: weight.clone() for name, weight in backend.weights()}
    losses = [backend.train_step(batch)["loss"] for _ in range(3)]
    forget(backend)
    del backend
    if saved.layout != read.layout:
        leave()
    other = make_backend(read, models, LOSSES["sft"])
    batch = make_batch({}, ranks=other.data_parallel_size)
    other.load_state(folder)
    found = {
        "exported": exported,
        "weights": all(torch.equal(weight, weights[name]) for name, weight in other.weights()),
        "losses": [other.train_step(batch)["loss"] for _ in range(3)],
        "expected": losses,
        "stored": sorted({key.rpartition(".")[2] for key in _keys(folder) if key.startswith("decoder")}),
        "messages": [],
    }
    forget(other)
    for changes in ({"lora": ()}, {"lora": ("k_proj",)}) if saved == read else ():
        refused = make_backend(replace(read, **changes), models, LOSSES["sft"])
        try:
            refused.load_state(folder)
        except CheckpointError as error:
            found["messages"].append(str(error))
        forget(refused)
    if saved == read:
        try:
            make_backend(replace(read, lora=(), options={"ref_load": str(folder)}), models)
        except CheckpointError as error:
            found["start"] = str(error)
    return found


def exported_alike(backend: Any, state: Path) -> bool:
    """Whether a state on disk gives the files that the model which wrote it exports. The first rank makes them, without the other."""
    folders = [state.with_name(f"{state.name}, {who}") for who in ("exported", "exported without a run")]
    backend.export_hf(folders[0])
    if torch.distributed.get_rank() > 0:
        return True
    folders[1].mkdir()
    type(backend)(backend.args).export_state(state, folders[1], {})
    names = [{str(path.relative_to(own)) for path in own.rglob("*") if path.is_file()} for own in folders]
    files = [{str(path.relative_to(own)): load_file(path) for path in own.rglob("*.safetensors")} for own in folders]
    return names[0] == names[1] and all(
        file.keys() == files[1][name].keys()
        and all(torch.equal(tensor, files[1][name][key]) for key, tensor in file.items())
        for name, file in files[0].items()
    )


def _keys(folder: Path) -> list[str]:
    from megatron.core import dist_checkpointing

    return list(dist_checkpointing.load_tensors_metadata(str(folder)))


def _refused(folder: Path) -> list[str]:
    """What names of layers are refused with that are not there, or not in every stage."""
    found = []
    for case in (
        Case("glm4_moe_lite", tensor=2, expert=2, sequence=True, lora=("q_proj", "o_proj")),
        Case("qwen3_moe", pipeline=2, options=FIRST, lora=("gate_proj",)),  # the second of three layers alone is dense
    ):
        try:
            make_backend(case, folder)
        except ArgumentError as error:
            found.append(str(error))
        leave()
    return found


def _critic(folder: Path) -> dict[str, Any]:
    """What a critic trains, and whether its values are those of its head and its adapters."""
    backend = make_backend(Case("qwen3", pipeline=2, options=FIRST, lora=ALL), folder, squared_values, "critic")
    batch = make_batch({}, ranks=1)
    steps = [backend.train_step(batch) for _ in range(3)]
    module = backend._model.module
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    forget(backend)
    return {
        "trained": sorted(name for name in trained if "_lora." not in name),
        "losses": [step["loss"] for step in steps],
    }


def squared_values(args: Any, inputs: Any) -> LossOutputs:
    """A critic's loss: values are to be 1."""
    return LossOutputs(inputs.reduce((inputs.values - 1.0).square()))
