"""`--deterministic-mode`: numbers stay what they are, torch is told for exactly as long as it computes, and is never asked for an operation
that it refuses on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import ArgumentError
from slime_core.tensors.determinism import deterministic, missing
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss
from slime_torch.backend import TorchBackend

REFUSED = [
    "put_",
    "put",
    "kthvalue",
    "nll_loss2d_forward",
    "bincount",
    "median",
    "max_unpool2d",
    "grid_sampler_2d_backward",
    "_ctc_loss_backward",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "reflection_pad2d_backward",
]
"""Operations for which torch has no deterministic kernel on a GPU (`torch.use_deterministic_algorithms`); besides them sums along a
dimension of floating-point numbers, and products of numbers that are scattered."""


class Refusals(TorchDispatchMode):
    """Notes the operations that torch would refuse on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        floats = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        refused = name in REFUSED or (name in ("cumsum", "cumsum_") and floats)
        if refused or (name.startswith("scatter_reduce") and "prod" in (*args, *given.values())):
            self.found.append(name)
        self.seen += 1
        return func(*args, **given)


def batch(tiny: SimpleNamespace) -> TrainBatch:
    return make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)


def run(backend: TorchBackend, given: TrainBatch) -> list[Any]:
    numbers = [backend.log_probs(given), backend.train_step(given), backend.evaluate(given), backend.train_step(given)]
    gradients = {name: gradient.tolist() for name, gradient in backend.gradients(given)}
    return [numbers, gradients, [(name, tensor.tolist()) for name, tensor in backend.weights()]]


@pytest.mark.parametrize("options", [{}, {"architecture": "qwen3_moe"}, {"lora_rank": 2}], ids=str)
def test_numbers_stay_the_same_and_no_operation_is_refused_on_a_gpu(
    tiny: SimpleNamespace, options: dict[str, Any]
) -> None:
    modes: list[bool] = []

    def loss(args: Any, inputs: LossInputs) -> LossOutputs:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return sft_loss(args, inputs)

    def made(**more: Any) -> TorchBackend:
        given = dict(options)
        return tiny.backend(tiny.model(given.pop("architecture", "llama")), loss, lr=0.1, **given, **more)

    plain = run(made(), batch(tiny))
    assert not any(modes)
    modes.clear()
    with Refusals() as watched:
        assert run(made(deterministic_mode=True), batch(tiny)) == plain
    assert set(modes) == {True}
    assert (watched.found, watched.seen > 100) == ([], True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_was_set_before_is_set_again_afterwards() -> None:
    asked: Any = SimpleNamespace(deterministic_mode=True)

    def is_set() -> tuple[bool, bool]:
        memory: Any = torch.utils.deterministic
        return torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory

    def fail() -> None:
        with deterministic(asked):
            with deterministic(asked):
                assert is_set() == (True, False)
            assert is_set() == (True, False)
            raise KeyError

    assert is_set() == (False, True)
    with pytest.raises(KeyError):
        fail()
    assert is_set() == (False, True)


ONE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
SEVERAL = {**ONE, "NCCL_ALGO": "^NVLS"}


def test_variables_are_set_where_the_environment_leaves_them_open() -> None:
    assert missing({}, several=False, started=False) == ONE
    assert missing({}, several=True, started=False) == SEVERAL
    assert missing(SEVERAL, several=True, started=True) == {}
    given = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "NCCL_ALGO": "Ring"}
    assert missing(given, several=True, started=True) == {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}


@pytest.mark.parametrize(
    ("environment", "several", "started", "said"),
    [
        ({"CUBLAS_WORKSPACE_CONFIG": ":4096:2"}, False, False, "':4096:2'.*must be :4096:8 or :16:8.*unset it"),
        ({"NCCL_ALGO": "NVLS"}, True, False, "NCCL_ALGO is 'NVLS'.*must be \\^NVLS or Tree"),
        ({"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"}, False, False, "is '1'.*must be 0"),
        ({}, False, True, "CUDA has started.*export CUBLAS_WORKSPACE_CONFIG=:4096:8"),
    ],
)
def test_an_environment_that_says_otherwise_is_refused(
    environment: dict[str, str], several: bool, started: bool, said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        missing(environment, several, started)
    if "NCCL_ALGO" in environment:  # one rank exchanges nothing
        assert missing(environment, False, started) == ONE
