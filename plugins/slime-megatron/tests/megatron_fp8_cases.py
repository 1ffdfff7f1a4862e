"""Cases of training in emulated FP8 with megatron-core, each compared with the torch backend's emulation on the same packed rows.

Of delayed scaling a batch is compared twice: first the scales are 1, then they come from before.
Nothing here imports megatron-core before a rank does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from megatron_cases import Case, forget, in_turn, largest, leave, make_backend
from megatron_cases import _gradients as gradients_of_rank
from megatron_cases import _trained as trained
from megatron_double import in_double
from megatron_models import VOCABULARY, as_in_a_file, make_arguments, make_config, make_model, save
from torch import Tensor

from slime_core.contracts.train_backend import TrainBatch
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_fp8.arguments import DelayedScalingArguments
from slime_losses.sft import sft_loss

LENGTHS = ((9, 60), (3, 51), (20, 34), (4, 3), (11, 30))
"""Prompts and responses: rows with more tokens than a block, an odd number of them, a sample without any trained token."""
SHORT = ((2, 4), (1, 4))
"""So few numbers that mostly none of them rounds otherwise for the last digit of a sum in float32."""


@dataclass(frozen=True)
class Numbers:
    """What a backend computes with one batch.

    Attributes:
        log_probs: of the trained tokens, per sample.
        gradients: by names in a checkpoint.
    """

    log_probs: list[list[float]]
    loss: float
    gradients: dict[str, Tensor]


def fp8(recipe: str, format: str = "e4m3", **further: Any) -> dict[str, Any]:
    """Options that switch emulated FP8 on."""
    return {"fp8_format": format, "fp8_recipe": recipe, "fp8_emulation": True, **further}


def arguments(**changes: Any) -> SimpleNamespace:
    """Those of both backends, without clipping and with weights that stand still."""
    from slime_torch.arguments import TorchArguments

    own = {n: f.get_default() for g in (TorchArguments, DelayedScalingArguments) for n, f in g.model_fields.items()}
    delayed = {name: changes.pop(name) for name in list(changes) if name in own}
    made = make_arguments(**{"clip_grad": 0.0, "lr": 0.0, "weight_decay": 0.0, **changes})
    return SimpleNamespace(**{**own, **vars(made), **delayed})


def components(name: str) -> Any:
    """Components of a run with this recipe, which quantises in float32 also where all else is float64."""
    recipe = Plugins().select("precision_recipe", name).target

    def make(args: Any, num_layers: int) -> Any:
        made = recipe(args, num_layers)
        new_product = made.linear

        def linear(name: str) -> Any:
            product = new_product(name)
            whole = product.forward

            def in_float32(input: Tensor, weight: Tensor) -> Any:
                with torch._C.DisableTorchFunction():
                    return whole(input, weight)

            product.forward = in_float32
            return product

        made.linear = linear
        return made

    return SimpleNamespace(further={"precision_recipe": make}, quantised={})


def make_batch(case: Case, seed: int = 5) -> TrainBatch:
    """The samples as packed rows, which are the same for all layouts of equally many data-parallel ranks."""
    generator = random.Random(seed)
    samples = [
        Sample(
            index=number,
            tokens=[generator.randrange(VOCABULARY) for _ in range(prompt + response)],
            response_length=response,
            loss_mask=[int(response > 3 and generator.random() < 0.8) for _ in range(response)],
        )
        for number, (prompt, response) in enumerate(LENGTHS if case.double else SHORT)
    ]
    return make_train_batch(samples, mean="token", max_tokens=170, ranks=case.data)


def batches(case: Case) -> list[TrainBatch]:
    """What is computed, one after the other. In float64 one batch, twice if scales come from before; in float32 three short ones."""
    if not case.double:
        return [make_batch(case, seed) for seed in range(3)]
    return [make_batch(case)] * (2 if case.options.get("fp8_recipe") == "delayed" else 1)


def truth_file(case: Case) -> str:
    """The name of the file with what the torch backend computes."""
    parts = [case.checkpoint, *(f"{name} {value}" for name, value in case.options.items() if "fp8" in name)]
    return ", ".join([*parts, f"DP {case.data}"]).replace("/", "_") + ".pt"


def prepare(case: Case, folder: Path) -> None:
    """Write the checkpoint of a case, and what the torch backend computes with it, unless they are there."""
    from transformers import AutoModelForCausalLM

    both = batches(case)
    for one in (case, without(case)):
        if (folder / truth_file(one)).is_file():
            continue
        model = make_model(case.model)
        with in_double() if case.double else nullcontext():
            if case.double:
                states = model.state_dict()
                model = AutoModelForCausalLM.from_config(make_config(case.model)).double()
                model.load_state_dict(states)
            if not (folder / case.checkpoint).is_dir():
                save(model, folder / case.checkpoint)
            found = with_torch(model.train(), one, both)
        torch.save([vars(numbers) for numbers in found], folder / truth_file(one))


def without(case: Case) -> Case:
    """The same without FP8."""
    further = {n: value for n, value in vars(case).items() if n != "options"}
    return Case(**further, options={n: value for n, value in case.options.items() if "fp8" not in n})


def with_torch(model: Any, case: Case, given: list[TrainBatch]) -> list[Numbers]:
    """What the torch backend computes with each batch."""
    from slime_torch.backend import TorchBackend

    options = {name: value for name, value in case.options.items() if "fp8" in name}
    args = arguments(optimizer="sgd", **options)
    backend = TorchBackend(args, components(args.fp8_recipe) if args.fp8_format else None)
    backend.attach(model, sft_loss, 10)
    found = []
    for batch in given:
        log_probs = trained(batch, backend.log_probs(batch))
        loss = backend.train_step(batch)["loss"]
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append(Numbers(log_probs, loss, as_in_a_file(gradients.items())))
    return found


def work(cases: list[Case], folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    """Compare one case after the other."""
    in_turn([(str(case), case, partial(compare, case, folder)) for case in cases], found, note)


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Compute the batches as the case says, and tell how far this rank's part is from what the torch backend computes.

    Returns:
        per batch log_probs, loss, gradients: the largest difference, relative to the largest value;
        errors: of gradients against those without FP8, by names of the checkpoint, of this backend and of the torch backend;
        layers: what `errors_of_layers` gives.
    """
    from slime_megatron import device, low_precision, optimizer

    expected = [Numbers(**numbers) for numbers in torch.load(folder / truth_file(case), weights_only=True)]
    plain = [Numbers(**numbers) for numbers in torch.load(folder / truth_file(without(case)), weights_only=True)]
    device.prepare()
    with in_double() if case.double else nullcontext():
        # megatron-core has no optimizer for float64
        with mock.patch.object(optimizer, "build", return_value=None) if case.double else nullcontext():
            backend = ready(case, folder)
        config = backend._model.module.config
        if case.double and config.moe_router_dtype:  # by name, which a backward pass looks up outside of the context
            config.moe_router_dtype = "fp64"
        found: dict[str, Any] = {"log_probs": [], "loss": [], "gradients": []}
        for batch, right in zip(batches(case), expected, strict=True):
            found["log_probs"].append(largest(trained(batch, backend.log_probs(batch)), right.log_probs))
            backend._wrapped.zero_grad_buffer()
            backend._wrapped.train()
            losses, _ = backend._computation.forward_backward(batch, backend._computation.own(batch))
            found["loss"].append(abs(sum(losses) - right.loss))
            found["gradients"].append(dict(gradients_of_rank(backend, right.gradients)))
            low_precision.end_step(backend._model.module)
        found["errors"] = dict(errors(backend, expected[-1], plain[-1]))
        found["layers"] = errors_of_layers(backend._model.module)
        forget(backend)
    return found


def ready(case: Case, folder: Path, role: str = "actor") -> Any:
    """The backend of a case, set up with its recipe."""
    with mock.patch("megatron_cases.make_arguments", arguments):
        return make_backend(case, folder, sft_loss, role, components(case.options["fp8_recipe"]))


def remembered(backend: Any) -> dict[str, list[Any]]:
    """What the products of this rank remember, by names of the checkpoint."""
    from slime_megatron.low_precision import low_precision_layers

    return {
        f"{file}.{key}": tensor.tolist()
        for _, layer in low_precision_layers(backend._model.module)
        for file, product in zip(layer.files, layer.precision, strict=True)
        for key, tensor in product.state_dict().items()
    }


def states(
    cases: dict[str, Case], checkpoints: Path, folder: Path, found: dict[str, Any], note: Callable[[], None]
) -> None:
    """Train, save and go on with the case "first"; load that in a new model of "first", of "another layout" and of "another recipe",
    and compare a reference model of "reference" with its actor.

    Finds: losses, by the model that trained; remembered, by the model; moved, whether anything but training moved scales; refusal;
    names, of the weights; reference, whether it has the log-probs of its actor.
    """
    from slime_core.errors import CheckpointError

    first, batch = ready(cases["first"], checkpoints), make_batch(cases["first"])

    def train(backend: Any) -> list[float]:
        return [backend.train_step(batch)["loss"] for _ in range(2)]

    losses, kept = found.setdefault("losses", {}), found.setdefault("remembered", {})
    train(first)
    kept["first"] = remembered(first)
    first.log_probs(batch)
    first.evaluate(batch)
    found["names"] = sorted(name for name, _ in first.weights())
    list(first.gradients(batch))
    found["moved"] = remembered(first) != kept["first"]
    state = folder / "state"
    if torch.distributed.get_rank() == 0:
        state.mkdir()
    torch.distributed.barrier()
    first.save_state(state)
    losses["first"] = train(first)
    forget(first)
    for name in ("first", "another layout", "another recipe"):
        if name != "first":
            leave()
        backend = ready(cases[name], checkpoints)
        try:
            backend.load_state(state)
        except CheckpointError as error:
            found["refusal"] = str(error)
        else:
            kept[f"{name}, loaded"] = remembered(backend)
            losses[f"{name}, loaded"] = train(backend)
        forget(backend)
        note()
    leave()
    actor, reference = (ready(cases["reference"], checkpoints, role) for role in ("actor", "reference"))
    found["reference"] = actor.log_probs(batch) == reference.log_probs(batch)


def errors(backend: Any, torch_s: Numbers, plain: Numbers) -> Iterator[tuple[str, tuple[float, float]]]:
    """By names of the checkpoint: how far gradients of weights in low precision are from those without FP8, in this backend and in
    the torch backend."""
    from slime_megatron import gradients, weights
    from slime_megatron.low_precision import low_precision_layers

    low = {file for _, layer in low_precision_layers(backend._model.module) for file in layer.files}
    for name, gradient in weights.gather(backend._model, gradients.own(backend._model)):
        if name in low:
            right = plain.gradients[name]
            yield name, (_error(gradient, right), _error(torch_s.gradients[name], right))


def _error(found: Tensor, right: Tensor) -> float:
    size = right.norm()
    return float((found - right).norm() / size) if size else float("nan")


def errors_of_layers(module: Any) -> dict[str, dict[str, float]]:
    """How far each layer's output, and the gradients of its input and weight, are from those that megatron-core's own layer
    computes, on normal numbers."""
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

    from slime_core.contracts.precision import Remembers
    from slime_megatron.low_precision import LowPrecisionColumn, low_precision_layers

    found = {}
    for name, layer in low_precision_layers(module):
        low = type(layer)
        layer.parts = None
        exact = ColumnParallelLinear if low is LowPrecisionColumn else RowParallelLinear
        three = []
        for kind in (low, low, exact):  # twice, so that delayed scaling has scales
            layer.__class__ = kind
            three.append(_pass(layer, exact is ColumnParallelLinear))
            for product in layer.precision if kind is low else ():
                if isinstance(product, Remembers):
                    product.end_step(lambda values: values)
        layer.__class__ = low
        names = ("output", "input", "weight")
        found[name] = {n: _error(a, b) for n, a, b in zip(names, three[1], three[2], strict=True)}
    return found


def _pass(layer: Any, column: bool) -> list[Tensor]:
    """(output, gradient of the input, gradient of the weight) of a layer alone, on numbers that are right for its place."""
    group = layer.tp_group
    size, rank, sequence = group.size(), group.rank(), layer.sequence_parallel and not layer.explicit_expert_comm

    def normal(shape: tuple[int, ...], cut: bool) -> Tensor:
        """The same on all ranks, or this rank's own."""
        seed = torch.Generator().manual_seed(7 + rank if cut else 3)
        return torch.randn(shape, generator=seed, dtype=layer.weight.dtype)

    rows = 160 // size if sequence else 160
    given = normal((rows, 1, layer.weight.shape[1]), cut=sequence or not column).requires_grad_()
    output, _ = layer.forward(given)  # without what latent attention does with it
    towards = normal(tuple(output.shape), cut=column or sequence)
    gradients = torch.autograd.grad(output, (given, layer.weight), towards)
    found = [output.detach(), *gradients]
    if layer.explicit_expert_comm and size > 1:  # what would be added up outside
        torch.distributed.all_reduce(found[1 if column else 0], group=group)
    return found


def limits(format: str) -> Mapping[str, tuple[float, float]]:
    """Between which errors of a layer's products lie: below the first, one of two operands was not quantised."""
    backward = (0.05, 0.07) if format == "hybrid" else (0.032, 0.045)
    return {"output": (0.032, 0.045), "input": backward, "weight": backward}
