"""What a backend holds moves to host memory and back; a run without a GPU says that this is of no use to it.

Where a test needs a second device beside the CPU, that is torch's meta device, which has shapes and no values.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import slime_torch.offload as offload_module
from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import ArgumentError
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss
from slime_torch.backend import TorchBackend
from slime_torch.offload import on_device

META = torch.device("meta")


def places(optimizer: torch.optim.Optimizer) -> set[str]:
    return {value.device.type for values in optimizer.state.values() for value in values.values()}


def mixed(tiny: SimpleNamespace) -> TrainBatch:
    samples = tiny.samples(tiny.mixed)
    columns = {"returns": [[0.1 * j for j in range(sample.response_length)] for sample in samples]}
    return make_train_batch(samples, micro_batch_size=3, columns=columns)


def squared_error(args: Any, inputs: LossInputs) -> LossOutputs:
    return LossOutputs(inputs.reduce((inputs.values - inputs.returns).square()))


def memory(backend: TorchBackend) -> list[int]:
    """Bytes behind everything that a backend keeps between steps."""
    state = backend.optimizer.state.values() if backend.optimizer else ()
    tensors = [*backend.model.parameters(), *backend.model.buffers(), *(t for values in state for t in values.values())]
    gradients = [p.grad for p in backend.model.parameters() if p.grad is not None]
    return [tensor.untyped_storage().nbytes() for tensor in (*tensors, *gradients)]


# ------------------------------------------------------------------------------------------------------ --offload

RUNS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, sgd": {"architecture": "llama_untied", "optimizer": "sgd"},
    "experts": {"architecture": "qwen3_moe"},
    "lora": {"lora_rank": 2},
    "critic": {"role": "critic", "loss": squared_error},
}


@pytest.mark.parametrize("name", RUNS)
def test_memory_is_given_back_between_steps_and_training_does_not_change(tiny: SimpleNamespace, name: str) -> None:
    def run(offloaded: bool) -> list[Any]:
        options = dict(RUNS[name])
        backend = tiny.backend(tiny.model(options.pop("architecture", "llama")), lr=0.1, **options)
        found: list[Any] = []
        for _ in range(3):
            if offloaded:
                before = memory(backend)
                backend.offload()
                backend.offload()
                assert not any(memory(backend))
                backend.onload()
                backend.onload()
                assert sum(memory(backend)) <= sum(before)  # gradients are gone
                assert all(memory(backend))
            found.append(backend.train_step(mixed(tiny)))
        if offloaded:
            backend.offload()
            backend.onload()
        per_token = backend.values if options.get("role") == "critic" else backend.log_probs
        return [found, per_token(mixed(tiny)), [(n, t.tolist()) for n, t in backend.weights()]]

    assert run(offloaded=True) == run(offloaded=False)


def test_a_reference_model_gives_back_its_memory_too(tiny: SimpleNamespace) -> None:
    reference = tiny.backend(tiny.model(), role="reference")
    before = reference.log_probs(mixed(tiny))
    reference.offload()
    assert not any(memory(reference))
    reference.onload()
    assert reference.log_probs(mixed(tiny)) == before


def test_what_is_in_host_memory_already_stays_there(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_torch.backend.check_device", lambda device, args: None)
    monkeypatch.setattr(offload_module, "HOST", META)
    backend = tiny.backend(tiny.model(), optimizer_cpu_offload=True)
    backend.train_step(mixed(tiny))
    assert places(backend.optimizer) == {"meta"}
    backend.offload()
    assert {storage.device.type for storage, _ in backend._offloaded._kept} == {"cpu"}
    state = [value for values in backend.optimizer.state.values() for value in values.values()]
    assert all(value.untyped_storage().nbytes() for value in state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures the memory of a GPU")
@pytest.mark.parametrize("optimizer_cpu_offload", [False, True])
def test_the_memory_of_a_gpu_is_free_in_between(tiny: SimpleNamespace, optimizer_cpu_offload: bool) -> None:
    def run(offloaded: bool) -> str:
        model = tiny.model(hidden_size=512, intermediate_size=2048).cuda()
        backend = tiny.backend(model, lr=0.01, optimizer_cpu_offload=optimizer_cpu_offload)
        found = []
        for _ in range(3):
            if offloaded:
                before = torch.cuda.memory_allocated()
                backend.offload()
                assert torch.cuda.memory_allocated() < 0.1 * before
                assert torch.cuda.memory_reserved() < 0.1 * before
                backend.onload()
            found.append(backend.train_step(mixed(tiny)))
        return str(found)

    assert run(offloaded=True) == run(offloaded=False)


@pytest.mark.parametrize("role", ["actor", "reference"])
def test_without_a_gpu_offload_is_refused(tiny: SimpleNamespace, role: str) -> None:
    with pytest.raises(ArgumentError, match="--offload needs a GPU: this process trains on the CPU"):
        tiny.backend(tiny.model(), sft_loss, role, colocate=True, offload=True)
    tiny.backend(tiny.model(), sft_loss, role, offload=True)  # has no effect without --colocate


# -------------------------------------------------------------------------------------------- --optimizer-cpu-offload


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_state_is_in_host_memory_after_a_step(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    backend = tiny.backend(tiny.model(), optimizer=optimizer)
    backend.train_step(mixed(tiny))
    found = backend.optimizer
    shapes = [[value.shape for value in values.values()] for values in found.state.values()]
    monkeypatch.setattr(offload_module, "HOST", META)
    with on_device(found):
        assert places(found) == {"cpu"}
    assert places(found) == {"meta"}
    assert [[value.shape for value in values.values()] for values in found.state.values()] == shapes


def test_the_state_is_where_its_parameter_is_for_a_step() -> None:
    here, there = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, device=META))
    optimizer = torch.optim.AdamW([here, there], fused=False)
    for parameter in (here, there):
        optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.arange(float(len(parameter)))}
    with on_device(optimizer):
        assert {value.device.type for value in optimizer.state[there].values()} == {"meta"}
        assert optimizer.state[here]["exp_avg"].tolist() == [0.0, 1.0, 2.0]
        del optimizer.state[there]  # meta tensors cannot go back
    assert places(optimizer) == {"cpu"}


def test_moving_the_state_does_not_change_training(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_torch.backend.check_device", lambda device, args: None)
    backends = [tiny.backend(tiny.model(), lr=0.1, optimizer_cpu_offload=flag) for flag in (False, True)]
    assert len({str([backend.train_step(mixed(tiny)) for _ in range(3)]) for backend in backends}) == 1


def test_without_a_gpu_it_is_refused(tiny: SimpleNamespace) -> None:
    with pytest.raises(ArgumentError, match="--optimizer-cpu-offload needs a GPU"):
        tiny.backend(tiny.model(), optimizer_cpu_offload=True)
