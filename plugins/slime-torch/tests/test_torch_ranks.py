"""Two training ranks, which are real processes here, give what one process gives: in float64, to the last digits.

The processes are started once. They run every scenario below and write down what they found; the tests run the same
scenarios in this process and compare.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch_cases import toolbox
from vision_checkpoints import make_model as vision_model
from vision_checkpoints import picture, write_checkpoint

from slime_core.contracts.loss import LossInputs, LossOutputs, reads
from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import SlimeError
from slime_core.free_port import FreePort
from slime_core.plugins import Plugins
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.testing import chat_tokenizer
from slime_core.training.batches import make_train_batch
from slime_core.training.components import TrainComponents
from slime_core.training.profiling import Profiler
from slime_core.training.worker import TrainWorker
from slime_losses.sft import sft_loss
from slime_torch import shared_memory
from slime_torch.backend import TorchBackend
from slime_torch.compiled import compile_layers
from slime_torch.fused_layers import fuse_layers
from slime_torch.gloo import AllGather, Network, ReduceScatter
from slime_torch.sharding import local, whole

STEPS = 2
TIMEOUT_S = 240
ROWS = 272
"""Embeddings of the models on disk: as many as the tokenizer beside them needs."""


@reads(lambda args: {"entropy"})
def policy_gradient(args: Any, inputs: LossInputs) -> LossOutputs:
    """PPO's clipped objective with an entropy bonus and a k3 estimate of the divergence from a reference."""
    ratio = (inputs.log_probs - inputs.old_log_probs).exp()
    objective = torch.minimum(ratio * inputs.advantages, ratio.clamp(0.8, 1.2) * inputs.advantages)
    gap = inputs.ref_log_probs - inputs.log_probs
    loss = -objective + 0.1 * (gap.exp() - gap - 1) - 0.05 * inputs.entropy
    metrics = {"ratio": inputs.measured(ratio.detach()), "entropy": inputs.measured(inputs.entropy.detach())}
    return LossOutputs(inputs.reduce(loss), metrics)


def squared_error(args: Any, inputs: LossInputs) -> LossOutputs:
    return LossOutputs(inputs.reduce((inputs.values - inputs.returns).square()))


def broken_at_one_sample(args: Any, inputs: LossInputs) -> LossOutputs:
    """A finite loss whose gradient is NaN in a micro-batch with five trained tokens."""
    zero = inputs.log_probs - inputs.log_probs.detach()
    bad = inputs.reduce(zero.abs().sqrt()) if len(zero) == 5 else 0.0
    return LossOutputs(sft_loss(args, inputs).loss + bad)


def odd_samples(tiny: SimpleNamespace, ranks: int) -> TrainBatch:
    return make_train_batch(tiny.samples(tiny.mixed[:5]), mean="token", micro_batch_size=2, ranks=ranks)


def groups(tiny: SimpleNamespace, ranks: int, **options: Any) -> TrainBatch:
    samples = tiny.groups(tiny.grouped)
    skipped = {1, 5, 9}

    def column(value: Callable[[int, int], float]) -> list[list[float]]:
        return [[value(s.index, j) for j in range(s.response_length)] for s in samples]

    columns = {
        "advantages": column(lambda i, j: 0.0 if i in skipped else math.cos(i)),
        "old_log_probs": column(lambda i, j: -4.0 - 0.1 * j),
        "ref_log_probs": column(lambda i, j: -4.5 + 0.1 * math.sin(i + j)),
        "returns": column(lambda i, j: 1.0 - 0.1 * i - 0.05 * j),
    }
    options = {"max_tokens": 20, "share_prompts": True, "balance": True, "skipped": skipped, **options}
    return make_train_batch(samples, columns=columns, temperature=0.9, ranks=ranks, **options)


def groups_for_two(tiny: SimpleNamespace, ranks: int) -> TrainBatch:
    """Packed as for two ranks, also where one process computes it."""
    return groups(tiny, 2)


def one_sample(tiny: SimpleNamespace, ranks: int) -> TrainBatch:
    return groups(tiny, ranks, skipped=set(range(1, 14)), balance=False)


def images_in_turns(tiny: SimpleNamespace, ranks: int) -> TrainBatch:
    """In every round of micro-batches one of two ranks has images, and the other has none."""
    first, second, *text = tiny.samples([(9, [1, 1]), (6, [1, 1, 1]), (3, [1, 1]), (4, [1])])
    first.tokens[1:6], first.images = [258, 260, 260, 259, 258], [picture(56, 28)]
    second.tokens[1:4], second.images = [260, 258, 260], [picture(28, 28), picture(28, 28, 1)]
    for sample in text:
        sample.tokens = [token % 250 for token in sample.tokens]
    return make_train_batch([first, text[0], text[1], second], micro_batch_size=1, ranks=ranks)


VISION = {"architecture": "qwen2_5_vl", "batch": images_in_turns, "lr": 0.01, "vision": True}
SCENARIOS: dict[str, dict[str, Any]] = {
    "images": VISION,
    "images, frozen tower, layers kept whole": {**VISION, "freeze_vision": True, "fsdp_reshard_after_forward": False},
    "images, lora": {**VISION, "lora_rank": 2},
    "sft": {"architecture": "llama_untied", "batch": odd_samples, "clip_grad": 0.5, "lr": 0.01},
    "sft, nothing to train": {
        "architecture": "gpt2",
        "batch": lambda tiny, ranks: make_train_batch(tiny.samples([(3, [0, 0])] * 3), ranks=ranks),
        "lr": 0.01,
        "optimizer": "sgd",
    },
    "grpo": {"architecture": "qwen3", "batch": groups, "loss": policy_gradient, "lr": 0.01},
    "grpo, one rank without a sample": {
        "architecture": "gemma2",
        "batch": one_sample,
        "loss": policy_gradient,
        "lr": 0.01,
        "optimizer": "sgd",
    },
    "grpo, experts": {"architecture": "qwen3_moe", "batch": groups, "loss": policy_gradient, "lr": 0.01},
    "grpo, recomputed": {  # in a backward pass float64 does not hold on to itself; GPT-2 needs no help
        "architecture": "gpt2",
        "batch": groups,
        "loss": policy_gradient,
        "lr": 0.01,
        "gradient_checkpointing": True,
    },
    "grpo, embedding and first layer frozen": {
        "architecture": "qwen3",
        "batch": groups,
        "loss": policy_gradient,
        "lr": 0.01,
        "freeze_params_name_list": ["embed_tokens", r"layers\.0\."],
    },
    "sft, experts alone": {
        "architecture": "qwen3_moe",
        "batch": odd_samples,
        "lr": 0.01,
        "only_train_params_name_list": ["experts"],
    },
    "lora": {"architecture": "qwen2", "batch": groups, "loss": policy_gradient, "lr": 0.01, "lora_rank": 2},
    "critic": {"architecture": "llama", "batch": groups, "loss": squared_error, "lr": 0.01, "role": "critic"},
    "critic, untied": {
        "architecture": "llama_untied",
        "batch": one_sample,
        "loss": squared_error,
        "lr": 0.01,
        "role": "critic",
    },
}
FP8 = {"architecture": "qwen3", "batch": groups, "loss": policy_gradient, "lr": 0.01, "fp8_format": "e4m3"}
FP8 |= {"fp8_emulation": True, "optimizer": "sgd"}
SCENARIOS |= {
    # The same rows, since blocks along tokens depend on them. One step: the last digits of its sums, which have another order on
    # two ranks, may decide how FP8 rounds in the next.
    "fp8, blocks": {**FP8, "fp8_recipe": "blockwise", "batch": groups_for_two, "steps": 1},
    "fp8, blocks of 32, one rank without a sample": {**FP8, "fp8_recipe": "mxfp8", "batch": one_sample, "steps": 1},
    "fp8, scales of earlier steps": {**FP8, "fp8_recipe": "delayed"},
    "fp8, experts": {**FP8, "fp8_recipe": "delayed", "architecture": "qwen3_moe"},
    "fp8, blocks of experts": {
        **FP8,
        "fp8_recipe": "blockwise",
        "architecture": "qwen3_moe",
        "batch": groups_for_two,
        "steps": 1,
    },
    "fp8, scales of earlier steps, one rank without a sample": {
        **FP8,
        "fp8_recipe": "delayed",
        "batch": one_sample,
        "gradient_checkpointing": True,
        "fsdp_reshard_after_forward": False,
    },
}
WHOLE = ("sft", "grpo", "grpo, one rank without a sample", "grpo, experts", "grpo, recomputed", "lora")
WHOLE += ("grpo, embedding and first layer frozen",)
SCENARIOS |= {f"{name}, layers kept whole": {**SCENARIOS[name], "fsdp_reshard_after_forward": False} for name in WHOLE}
for name in ("grpo", "grpo, embedding and first layer frozen"):
    SCENARIOS[f"{name}, fused layers"] = {**SCENARIOS[name], "fused": True}
SCENARIOS["grpo, compiled layers"] = {**SCENARIOS["grpo"], "compile_layers": True}
SCENARIOS["lora, offloaded between steps"] = {**SCENARIOS["lora"], "offloaded": True}


@contextmanager
def fused_layers() -> Iterator[None]:
    """A backend that is made inside of this context fuses its layers, as it would on a GPU, but in float64."""

    def fuse(model: Any, rounded: Any, device: torch.device) -> None:
        assert fuse_layers(model, RoundedWeights(torch.float64, keep=False), device, autocast=False) == 2

    changed = {"fuses": lambda args, on_gpu: True, "kernels_are_right": lambda device: True, "fuse_layers": fuse}
    with mock.patch.multiple("slime_torch.backend", **changed):
        yield


@contextmanager
def compiled_layers() -> Iterator[None]:
    """A backend that is made inside of this context traces its layers, and computes what is traced as it stands."""

    def trace(model: Any) -> None:
        assert compile_layers(model, "eager") == 2 * 4

    with mock.patch("slime_torch.backend.compile_layers", trace):
        yield


def run(tiny: SimpleNamespace, name: str, ranks: int, folder: Path) -> dict[str, Any]:
    """Everything that a few training steps show: the same on every rank.

    Args:
        folder: has the checkpoint of a model that reads images.
    """
    options = dict(SCENARIOS[name])
    architecture, batch = options.pop("architecture"), options.pop("batch")(tiny, ranks)
    critic, offloaded = options.get("role") == "critic", options.pop("offloaded", False)
    steps = options.pop("steps", STEPS)
    with tiny.float64():
        if options.pop("vision", False):
            options["hf_checkpoint"] = str(folder / architecture)
            model = vision_model(architecture).double()
        else:
            model = tiny.model(architecture)
        with fused_layers() if options.pop("fused", False) else compiled_layers():
            backend = tiny.backend(model, **options)
        assert backend.data_parallel_size == ranks
        per_token = backend.values if critic else backend.log_probs
        found: dict[str, Any] = {"before": per_token(batch), "evaluated": backend.evaluate(batch), "metrics": []}
        for _ in range(steps):
            if offloaded:
                backend.offload()
                assert not any(memory(backend))
                backend.onload()
                assert all(memory(backend))
            found["metrics"].append(backend.train_step(batch))
        found["after"] = per_token(batch)
        found["evaluated after"] = backend.evaluate(batch)
    found["gradients"] = {n: whole(p.grad) for n, p in backend.model.named_parameters() if p.grad is not None}
    found["weights"] = dict(backend.weights())
    found["memory"] = {n: b for n, b in backend.model.named_buffers() if ".precision." in n}
    return found


def memory(backend: TorchBackend) -> list[int]:
    """Bytes behind each tensor that this rank has a part of."""
    parameters = (local(parameter) for parameter in backend.model.parameters())
    states = (local(value) for values in backend.optimizer.state.values() for value in values.values())
    return [tensor.untyped_storage().nbytes() for tensor in (*parameters, *states)]


def failure(action: Callable[[], Any]) -> str:
    try:
        action()
    except SlimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def failures(tiny: SimpleNamespace, rank: int) -> dict[str, Any]:
    """What the ranks say when something is wrong with one of them; then they go on."""
    found: dict[str, Any] = {}
    samples = tiny.samples([(3, [1, 1]), (3, [1] * 5), (3, [1]), (3, [1, 1])])
    for name, reshard in (("gradient", True), ("whole gradient", False)):
        backend = tiny.backend(
            tiny.model("llama_untied"), broken_at_one_sample, lr=0.1, fsdp_reshard_after_forward=reshard
        )
        found[name] = failure(lambda own=backend: own.train_step(make_train_batch(samples, ranks=2)))
    backend = tiny.backend(tiny.model("llama_untied", dtype=torch.float32), lr=0.1)
    bad = [*samples[:2], replace(samples[2], tokens=[1, 2, 263, 4]), samples[3]]
    found["token"] = failure(lambda: backend.train_step(make_train_batch(bad, ranks=2)))
    image = [replace(one) for one in samples]
    image[2].images = [picture(28, 28)]
    found["image"] = failure(lambda: backend.train_step(make_train_batch(image, ranks=2)))
    found["went on"] = math.isfinite(backend.train_step(make_train_batch(samples, ranks=2))["loss"])

    poisoned = tiny.model("llama_untied")
    with torch.no_grad():
        poisoned.get_input_embeddings().weight[95] = math.nan
    for sample in samples:
        sample.tokens = [min(token, 90) for token in sample.tokens]
    samples[3] = replace(
        samples[3], tokens=[95, *samples[3].tokens[1:]], metadata={"slime": {"source": "rows.jsonl:17"}}
    )
    backend = tiny.backend(poisoned, lr=0.1)
    before = dict(backend.weights())
    found["loss"] = failure(lambda: backend.train_step(make_train_batch(samples, ranks=2)))
    found["unchanged"] = all(torch.equal(before[n].nan_to_num(7), t.nan_to_num(7)) for n, t in backend.weights())
    return found


def exchanges(tiny: SimpleNamespace, reshard: bool) -> dict[str, int]:
    """What the ranks exchange in an optimizer step with three micro-batches each: two layers and the rest."""
    counts = {kind.__name__: 0 for kind in (AllGather, ReduceScatter)}

    def counted(kind: type) -> Any:
        def call(self: Any, *args: Any, _right: Any = kind.__call__, **options: Any) -> None:
            counts[kind.__name__] += 1
            _right(self, *args, **options)

        return mock.patch.object(kind, "__call__", call)

    backend = tiny.backend(tiny.model("llama_untied"), fsdp_reshard_after_forward=reshard)
    with counted(AllGather), counted(ReduceScatter):
        backend.train_step(make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=1, ranks=2))
    return counts


def ways(rank: int) -> dict[str, bool]:
    """Whether these ranks share memory, and get through it what they get through the network, bit for bit."""
    group = torch.distributed.group.WORLD
    own = torch.randn(2, 3 * shared_memory.SLOT // 4 + 5, generator=torch.Generator().manual_seed(rank))
    memory = shared_memory.between(group)
    found = {"shared": type(memory) is shared_memory.SharedMemory}
    results = []
    for way in (Network(), memory or Network()):
        received, total = [torch.zeros_like(own[0]) for _ in range(2)], torch.zeros_like(own[0])
        way.gather(own[0], received, group)
        way.add(list(own), total, group)
        results.append((received[1 - rank], total))
    found["alike"] = all(map(torch.equal, *results))
    with mock.patch.object(shared_memory, "_machine", return_value=f"machine {rank}"):
        found["machines"] = shared_memory.between(group) is None
    process = os.getpid() if rank else os.getppid()  # in a container the same number is another process
    with mock.patch.object(os, "getpid", return_value=process):
        found["containers"] = shared_memory.between(group) is None
    return found


def from_disk(tiny: SimpleNamespace, rank: int, folder: Path) -> dict[str, Any]:
    """`setup`, checkpoints and exports."""
    found: dict[str, Any] = {}
    args = tiny.args(hf_checkpoint=str(folder / "model"), lr=0.01)
    backend = TorchBackend(args)
    backend.setup(sft_loss, 10)
    found["random"] = torch.rand(1).item()
    found["loaded"] = dict(backend.weights())
    found["part"] = max(p.to_local().numel() / p.numel() for p in backend.model.parameters())
    backend.export_hf(folder / "exported")
    batch = odd_samples(tiny, 2)
    reference = TorchBackend(args)
    reference.setup(sft_loss, 10, "reference")
    found["reference"] = reference.log_probs(batch) == backend.log_probs(batch)
    backend.train_step(batch)
    (folder / "state").mkdir(exist_ok=True)
    torch.distributed.barrier()
    backend.save_state(folder / "state")
    found["saved loss"] = backend.evaluate(batch)["loss"]
    steps = [backend.train_step(batch) for _ in range(2)]
    resumed = TorchBackend(args)
    resumed.setup(sft_loss, 10)
    resumed.load_state(folder / "state")
    found["resumed"] = [resumed.train_step(batch) for _ in range(2)] == steps
    found["steps"] = steps
    adapters = TorchBackend(tiny.args(hf_checkpoint=str(folder / "model"), lr=0.01, lora_rank=2))
    adapters.setup(sft_loss, 10)
    found["lora"] = adapters.train_step(batch)
    adapters.export_hf(folder / "lora")
    critic = TorchBackend(args)
    critic.setup(squared_error, 10, "critic")
    found["values"] = {value for row in critic.values(batch) for value in row}
    found["incomplete"] = failure(
        lambda: TorchBackend(tiny.args(hf_checkpoint=str(folder / "incomplete"))).setup(sft_loss, 10)
    )
    return found


def kept(tiny: SimpleNamespace) -> dict[str, bool]:
    """Whether the model is with a copy of its weights what it was, and afterwards what it is."""
    found = {}
    for name, options in {
        "parts": {},
        "whole layers": {"fsdp_reshard_after_forward": False},
        "lora": {"lora_rank": 2},
    }.items():
        backend, batch = tiny.backend(tiny.model("qwen3"), lr=0.1, **options), odd_samples(tiny, 2)

        def shown(backend: Any = backend, batch: TrainBatch = batch) -> list[Any]:
            return [backend.log_probs(batch), *(tensor.clone() for _, tensor in backend.weights())]

        def same(one: list[Any], other: list[Any]) -> bool:
            return one[0] == other[0] and all(map(torch.equal, one[1:], other[1:]))

        backend.train_step(batch)
        first = shown()
        backend.keep_weights("first")
        backend.train_step(batch)
        now = shown()
        with backend.with_kept_weights("first"):
            found[name] = same(shown(), first)
        found[name] &= not same(now, first) and same(shown(), now)
    return found


def too_late(rank: int) -> list[str]:
    """What rank 1 says that waits in vain, for a weight and in an exchange of FSDP."""
    group, other = (dist.new_group([0, 1], timeout=timedelta(seconds=0.3)) for _ in range(2))
    weight = distribute_tensor(torch.ones(4), DeviceMesh.from_group(group, "cpu"), [Shard(0)], src_data_rank=None)
    if rank == 0:
        dist.barrier()
        return []
    found = [failure(lambda: whole(weight))]
    found.append(failure(lambda: Network().gather(torch.ones(4), torch.zeros(2, 4).unbind(), other)))
    dist.barrier()
    return found


def closing(tiny: SimpleNamespace, folder: Path) -> dict[str, Any]:
    """A training worker in each rank, as a run makes it, and whether there is a process group before and after its
    end."""
    plugins = Plugins([])
    components = TrainComponents(
        train_backend=plugins.select("train_backend", "slime_torch.backend.TorchBackend"),
        loss=plugins.select("loss", "slime_losses.sft.sft_loss"),
    )
    args = tiny.args(hf_checkpoint=str(folder / "model"), lr=0.01, num_steps_per_rollout=1)
    other = tiny.backend(tiny.model())
    worker = TrainWorker(args, plugins, components, Profiler(args, folder), total_rollouts=1)
    worker.setup()
    found = {"metrics": worker.train(0, [[sample] for sample in tiny.samples(tiny.mixed)])}
    found["before"] = torch.distributed.is_initialized()
    worker.close()
    found["after"] = torch.distributed.is_initialized()
    other.close()  # the models of a process leave the group together, and each of them is closed
    return found


def child(rank: int, port: int, folder: Path) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    found: dict[str, Any] = {}
    try:
        tiny = toolbox()
        for name in SCENARIOS:
            found[name] = run(tiny, name, 2, folder)
        found["listens"] = listening()
        found["failures"] = failures(tiny, rank)
        found["exchanges"] = {reshard: exchanges(tiny, reshard) for reshard in (True, False)}
        found["ways"] = ways(rank)
        found["kept"] = kept(tiny)
        found["disk"] = from_disk(tiny, rank, folder)
        found["too late"] = too_late(rank)
        found["closed"] = closing(tiny, folder)
    finally:
        torch.save(found, folder / f"rank{rank}.pt")


def listening() -> set[str]:
    """The addresses at which this process accepts connections."""
    own = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    found = [bytes.fromhex(line[1].split(":")[0]) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]
    return {socket.inet_ntoa(address[::-1]) if len(address) == 4 else address.hex() for address in found}


@pytest.fixture(scope="module")
def two(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The folder, and what each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny.model("qwen3", dtype=torch.float32, attention_dropout=0.1, vocab_size=ROWS).save_pretrained(folder / "model")
    chat_tokenizer().save_pretrained(folder / "model")
    incomplete = tiny.model("qwen3", dtype=torch.float32, vocab_size=ROWS)
    state = {name: t for name, t in incomplete.state_dict().items() if "layers.1" not in name and "lm_head" not in name}
    incomplete.save_pretrained(folder / "incomplete", state_dict=state)
    chat_tokenizer().save_pretrained(folder / "incomplete")
    write_checkpoint(folder / "qwen2_5_vl", "qwen2_5_vl")
    context, port = multiprocessing.get_context("spawn"), FreePort("127.0.0.1")
    processes = [context.Process(target=child, args=(rank, port.number, folder), daemon=True) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_S)
        assert [process.exitcode for process in processes] == [0, 0]
        yield folder, [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    finally:
        for process in processes:
            if process.pid is not None:  # it was started
                process.kill()
                process.join()


def assert_close(found: Any, expected: Any, where: str) -> None:
    """Equal to 1e-10, through lists and dicts; to 1e-6 where the last digit of a number decides to which number of FP8 it is
    rounded."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_close(found[name], expected[name], f"{where}, {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{where}, {number}")
    else:
        a, b = torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
        limit = 1e-6 if "fp8, blocks" in where else 1e-10
        torch.testing.assert_close(a, b, rtol=limit, atol=limit, msg=lambda text: f"{where}: {text}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's own tracing
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_train_as_one_process_does(tiny: SimpleNamespace, two: Any, name: str) -> None:
    expected = run(tiny, name, 1, two[0])
    found = [rank[name] for rank in two[1]]
    assert_close(found[0], expected, name)
    assert_close(found[1], found[0], "rank 1")
    assert found[0]["metrics"] == found[1]["metrics"]  # the very same numbers, so that no decision can differ
    if name != "sft, nothing to train":
        assert expected["metrics"][0]["grad_norm"] > 0.01
        assert abs(expected["evaluated"]["loss"] - expected["evaluated after"]["loss"]) > 1e-4


def test_the_comparison_sees_gradients_that_are_averaged(tiny: SimpleNamespace, two: Any) -> None:
    expected = run(tiny, "critic", 1, two[0])
    found = two[1][0]["critic"]
    halved = {name: gradient / 2 for name, gradient in found["gradients"].items()}
    with pytest.raises(AssertionError, match="gradients"):
        assert_close({**found, "gradients": halved}, expected, "critic")


def test_layers_that_are_kept_whole_are_exchanged_once_in_a_step(two: Any) -> None:
    for rank in two[1]:
        assert rank["exchanges"] == {
            True: {"AllGather": 3 * (2 * 2 + 1), "ReduceScatter": 3 * 3},  # what lies outside of the layers stays whole
            False: {"AllGather": 3, "ReduceScatter": 3},
        }


def test_ranks_of_one_machine_share_memory_and_get_through_it_what_the_network_brings(two: Any) -> None:
    for rank in two[1]:
        assert rank["ways"] == {"shared": True, "alike": True, "machines": True, "containers": True}


def test_a_fault_on_one_rank_stops_all_of_them_with_the_samples_named(two: Any) -> None:
    found = [rank["failures"] for rank in two[1]]
    assert found[0] == found[1]
    assert (
        "TrainingError: The gradient is NaN or Inf in optimizer step 0, in the micro-batch of sample 1."
        in (found[0]["gradient"])
    )
    assert found[0]["whole gradient"] == found[0]["gradient"]
    assert (
        "TrainingError: The loss is NaN or Inf in optimizer step 0, in the micro-batch of sample 3 (rows.jsonl:17)."
        in (found[0]["loss"])
    )
    assert "SampleError: sample 2 holds the token id 263" in found[0]["token"]
    assert "ArgumentError: sample 2 has images, and the model (LlamaForCausalLM) reads none" in found[0]["image"]
    assert found[0]["unchanged"]
    assert found[0]["went on"]


def test_ranks_load_the_same_weights_keep_a_part_of_them_and_export_them_once(tiny: SimpleNamespace, two: Any) -> None:
    folder, ranks = two
    stored = load_file(folder / "model" / "model.safetensors")
    for rank in ranks:
        found = rank["disk"]
        assert all(torch.equal(found["loaded"][name], tensor) for name, tensor in stored.items())
        assert found["loaded"].keys() == stored.keys()
        assert found["part"] <= 0.51
        assert found["reference"]
    exported = load_file(folder / "exported" / "model.safetensors")
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())
    assert (folder / "exported" / "tokenizer_config.json").is_file()


def test_adapters_and_critics_are_made_alike_on_ranks_that_have_no_weights_yet(tiny: SimpleNamespace, two: Any) -> None:
    folder, ranks = two
    alone = TorchBackend(tiny.args(hf_checkpoint=str(folder / "model"), lr=0.01, lora_rank=2))
    alone.setup(sft_loss, 10)
    before = dict(alone.weights())
    alone.export_hf(folder / "lora of one process")
    adapters = [
        load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("lora", "lora of one process")
    ]
    assert adapters[0].keys() == adapters[1].keys()
    assert load_file(folder / "lora" / "model.safetensors").keys() == before.keys()
    for rank in ranks:
        assert rank["disk"]["lora"] == ranks[0]["disk"]["lora"]
        assert rank["disk"]["lora"]["grad_norm"] > 0
        assert rank["disk"]["values"] == {0.0}


def test_a_model_on_ranks_is_with_a_copy_of_its_weights_what_it_was(two: Any) -> None:
    assert [found["kept"] for found in two[1]] == [{"parts": True, "whole layers": True, "lora": True}] * 2


def test_ranks_that_meet_on_the_loopback_interface_listen_nowhere_else(two: Any) -> None:
    assert [found["listens"] for found in two[1]] == [{"127.0.0.1"}, {"127.0.0.1"}]


def test_ranks_leave_the_process_group_when_their_worker_is_closed(two: Any) -> None:
    first, second = (rank["closed"] for rank in two[1])
    assert (first["before"], first["after"]) == (second["before"], second["after"]) == (True, False)
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["num_trained_tokens"] == 22


def test_a_rank_that_waits_too_long_for_a_weight_says_so(two: Any) -> None:
    for told, what in zip(two[1][1]["too late"], ("a weight", "layers and gradients"), strict=True):
        assert told.startswith("ClusterError: Training rank 1 (process ")
        assert f"for their parts of {what}" in told


def test_dropout_differs_between_ranks(two: Any) -> None:
    first, second = (rank["disk"]["random"] for rank in two[1])
    assert first != second


def test_ranks_resume_bit_for_bit_and_one_process_can_go_on_from_their_checkpoint(
    tiny: SimpleNamespace, two: Any
) -> None:
    folder, ranks = two
    assert all(rank["disk"]["resumed"] for rank in ranks)
    alone = TorchBackend(tiny.args(hf_checkpoint=str(folder / "model"), lr=0.01))
    alone.setup(sft_loss, 10)
    alone.load_state(folder / "state")
    assert alone.evaluate(odd_samples(tiny, 1))["loss"] == pytest.approx(ranks[0]["disk"]["saved loss"], rel=1e-5)


def test_a_checkpoint_that_rank_0_cannot_load_stops_the_others_too(two: Any) -> None:
    first, second = (rank["disk"]["incomplete"] for rank in two[1])
    assert first.startswith("ArgumentError: --hf-checkpoint")
    assert "lacks" in first
    assert second == f"{first} (on training rank 0)"
