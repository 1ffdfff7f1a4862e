"""The optimizer's state moves to host memory and back; a run without a GPU says that this is of no use to it.

Between two devices of which one is a GPU the same code runs; here the second one is torch's meta device, which has
shapes and no values.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import slime_torch.offload as offload_module
from slime_core.batch import make_train_batch
from slime_core.errors import ArgumentError
from slime_torch.offload import on_device

META = torch.device("meta")


def places(optimizer: torch.optim.Optimizer) -> set[str]:
    return {value.device.type for values in optimizer.state.values() for value in values.values()}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_state_is_in_host_memory_after_a_step(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    backend = tiny.backend(tiny.model(), optimizer=optimizer)
    backend.train_step(make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3))
    found = backend._optimizer
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
    monkeypatch.setattr("slime_torch.backend.check_device", lambda device: None)
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)
    backends = [tiny.backend(tiny.model(), lr=0.1, optimizer_cpu_offload=flag) for flag in (False, True)]
    assert len({str([backend.train_step(batch) for _ in range(3)]) for backend in backends}) == 1


def test_without_a_gpu_it_is_refused(tiny: SimpleNamespace) -> None:
    with pytest.raises(ArgumentError, match="--optimizer-cpu-offload needs a GPU"):
        tiny.backend(tiny.model(), optimizer_cpu_offload=True)
