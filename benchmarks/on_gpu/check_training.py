"""The trainer on this device: bfloat16 against float32, GPU against CPU, the same step twice, resumed, offloaded."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu.check_numbers import distance
from benchmarks.on_gpu.job import Findings, NotHere
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import configuration, random_batch, random_model, shared_batch, trainer
from slime_core.contracts.train_backend import TrainBatch

LENGTHS = [301, 17, 128, 2, 255, 64]
MICRO_BATCH = 400


def bf16_against_fp32(machine: Machine, found: Findings, name: str) -> None:
    """The loss, and all gradients together, of one batch.

    A number goes through about ten roundings in each layer, each off by 2^-9 with a random sign, which add up like the root of their
    number: 0.002 · √(10 · 28) = 3 % of a gradient with 28 layers. The loss is a mean over hundreds of tokens, of which each is off by
    about that share of what a logit varies by.
    """
    batch = random_batch(machine, name, LENGTHS, MICRO_BATCH)
    exact = loss_and_gradients(trainer(machine, name, ["--no-bf16"]), batch)
    machine.clean()
    rounded = loss_and_gradients(trainer(machine, name, ["--bf16"]), batch)
    layers = configuration(machine, name)["num_hidden_layers"]
    found.within("loss, relative", abs(rounded[0] - exact[0]) / exact[0], 2e-3)
    found.within("gradients, relative", apart(rounded[1], exact[1]), 2 * 2.0**-9 * (10 * layers) ** 0.5)
    worst = max(exact[1], key=lambda key: distance(rounded[1][key], exact[1][key]))
    found.note(loss=exact[0], worst=worst, worst_distance=distance(rounded[1][worst], exact[1][worst]))


def gpu_against_cpu(machine: Machine, found: Findings, name: str) -> None:
    """Loss and gradients in float32 of the same weights on both, which differ by the order of sums alone."""
    batch, cpu = random_batch(machine, name, LENGTHS, MICRO_BATCH), torch.device("cpu")
    model = random_model(machine, name)
    twin = copy.deepcopy(model).to(cpu)  # type: ignore[arg-type]  # transformers hides its signature
    mine = loss_and_gradients(trainer(machine, name, ["--no-bf16"], model=model), batch)
    theirs = loss_and_gradients(trainer(machine, name, ["--no-bf16"], model=twin), batch)
    found.holds("float32 products are not in TF32", torch.get_float32_matmul_precision() == "highest")
    found.within("loss, relative", abs(mine[0] - theirs[0]) / theirs[0], 1e-5)
    found.within("gradients, relative", apart(mine[1], theirs[1]), 1e-4)


def loss_and_gradients(backend: Any, batch: TrainBatch) -> tuple[float, dict[str, Tensor]]:
    """Of the batch, the gradients in host memory."""
    loss = backend.evaluate(batch)["loss"]
    return loss, {name: gradient.cpu().clone() for name, gradient in backend.gradients(batch)}


def apart(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The relative distance of all tensors together."""
    assert some.keys() == others.keys()
    off = sum(float((some[key].double() - others[key].double()).square().sum()) for key in others)
    return (off / sum(float(other.double().square().sum()) for other in others.values())) ** 0.5


def twice(machine: Machine, found: Findings, name: str, words: list[str], exact: bool) -> None:
    """Two runs of the same steps end with the same weights: bit for bit, or but for rounding."""
    words = [*words, *["--fp8-emulation"] * ("--fp8-format" in words and not machine.on_gpu)]
    ends = [_after(machine, _new(machine, name, words), name, range(3)) for _ in range(2)]
    _same(found, *ends, exact)


def resume(machine: Machine, found: Findings, words: list[str], exact: bool) -> None:
    """A run that is saved and goes on in another backend ends like one that was never stopped: bit for bit, or but for rounding."""
    name = "check"
    with TemporaryDirectory(dir=machine.scratch) as place:
        first = _new(machine, name, words)
        _after(machine, first, name, range(2))
        first.save_state(Path(place))
        first.saved()
        saved = _weights(first)
        unbroken = _after(machine, first, name, [2])
        second = _new(machine, name, words)
        second.load_state(Path(place))
        found.holds("what is loaded is what was saved", _equal(saved, _weights(second)))
        resumed = _after(machine, second, name, [2])
    _same(found, unbroken, resumed, exact)


def _same(found: Findings, some: dict[str, Tensor], others: dict[str, Tensor], exact: bool) -> None:
    """But for rounding: gradients in bfloat16 that differ in their last digits, of which Adam makes steps that differ by as much. Three
    steps of 1e-5 move weights of 0.02 by 1.5e-3 of their size; the bound is a fifteenth of that, as a step is another one altogether
    where a gradient is about 0."""
    differ = [key for key in some if not torch.equal(some[key], others[key])]
    found.note(parameters_that_differ=len(differ), some_of_them=differ[:8])
    if exact:
        found.holds("bit for bit", not differ)
    found.within("distance", apart(some, others), 0.0 if exact else 1e-4)


def offload(machine: Machine, found: Findings) -> None:
    """Weights, buffers and the optimizer's state come back bit for bit, and the memory is free in between."""
    from slime_torch.offload import held

    backend = _new(machine, "check", ["--bf16"])
    _after(machine, backend, "check", range(2))
    backend.optimizer.zero_grad()
    tensors = held(backend.model, backend.optimizer)
    before, took = [tensor.detach().cpu().clone() for tensor in tensors], machine.allocated()
    backend.offload()
    left, reserved = machine.allocated(), machine.reserved()
    kept = machine.what_is_allocated()
    backend.onload()
    machine.sync()
    found.holds("bit for bit", all(torch.equal(a, b.cpu()) for a, b in zip(before, tensors, strict=True)))
    found.note(mib_before=took / 2**20, mib_offloaded=left / 2**20, mib_reserved=reserved / 2**20)
    if machine.on_gpu:
        found.within("share of the memory that stays", left / took, 0.05)
        if found.outside:
            found.note(kept=kept)
            print(json.dumps(kept, indent=1), flush=True)
    _after(machine, backend, "check", [2])


def process_group(machine: Machine, found: Findings, backend: str) -> None:
    """A process group such as several ranks would have, of this process alone."""
    import torch.distributed as dist

    if backend == "nccl" and not machine.on_gpu:
        raise NotHere("NCCL needs a GPU")
    if backend == "gloo" and not _has_an_address():
        raise NotHere("gloo needs a network interface that is up, if only the loopback")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        values = torch.arange(1000.0, device=machine.device if backend == "nccl" else "cpu")
        dist.all_reduce(values)
        dist.broadcast(values, 0)
        found.holds("the sum over one rank", torch.equal(values.cpu(), torch.arange(1000.0)))
        if backend == "nccl":
            found.note(version=".".join(map(str, torch.cuda.nccl.version())))
    finally:
        dist.destroy_process_group()


def _has_an_address() -> bool:
    """Whether a network interface of this machine is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", 9))
        except OSError:
            return False
    return True


def _new(machine: Machine, name: str, words: list[str]) -> Any:
    return trainer(machine, name, words)


def _after(machine: Machine, backend: Any, name: str, steps: Any) -> dict[str, Tensor]:
    """The weights, in host memory, after steps of these numbers, each on a batch of its own; those of odd numbers share prompts."""
    for step in steps:
        if step % 2:
            backend.train_step(shared_batch(machine, name, 70, LENGTHS, seed=step))
        else:
            backend.train_step(random_batch(machine, name, LENGTHS, MICRO_BATCH, seed=step))
    return _weights(backend)


def _weights(backend: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in backend.model.named_parameters()}


def _equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(some[key], others[key]) for key in others)
