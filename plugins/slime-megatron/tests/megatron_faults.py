"""Faults of megatron-core that give wrong numbers in silence, planted by taking away what guards against them; and what has to
be seen in the ranks themselves.

Each fault is a context manager that a `megatron_cases.Case` names.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from megatron_cases import Case, forget, leave, make_backend, work
from megatron_models import make_batch
from megatron_truth import LOSSES
from torch import Tensor


@contextmanager
def _configured(**fields: Any) -> Iterator[None]:
    """Fields of megatron-core's configuration are other ones than the backend sets."""
    from slime_megatron import model

    right = model._config

    def config(*args: Any, **options: Any) -> Any:
        made = right(*args, **options)
        for name, value in fields.items():
            assert hasattr(made, name)
            setattr(made, name, value)
        return made

    with mock.patch.object(model, "_config", config):
        yield


def outputs_freed() -> Any:
    """Pipeline stages free what they have sent."""
    return _configured(deallocate_pipeline_outputs=True)


def mean_over_micro_batches() -> Any:
    """The loss is averaged over the micro-batches of a rank."""
    return _configured(calculate_per_token_loss=False)


@contextmanager
def mean_over_micro_batches_and_alias() -> Iterator[None]:
    """The same, and losses are reported as they were given to the schedule."""
    from slime_megatron.pipeline import Pipeline

    right = Pipeline.train

    def train(self: Any, micro_batches: Any, loss: Callable[..., Any], *rest: Any) -> Any:
        def aliased(micro_batch: Any, predicted: Any) -> Any:
            value, (_, metrics) = loss(micro_batch, predicted)
            return value, (value.detach(), metrics)

        return right(self, micro_batches, aliased, *rest)

    with mean_over_micro_batches(), mock.patch.object(Pipeline, "train", train):
        yield


@contextmanager
def rotary_key_gradients_not_summed() -> Iterator[None]:
    """Every tensor-parallel rank learns the rotary keys from its own heads."""
    from slime_megatron import model

    with mock.patch.object(model, "sum_rotary_key_gradients", return_value=None):
        yield


@contextmanager
def no_experts_in_the_layout() -> Iterator[None]:
    """A model whose configuration knows experts, but whose layers have none, is cut as a dense one."""
    from slime_megatron import backend

    with mock.patch.object(backend, "_experts_of", return_value=0):
        yield


@contextmanager
def rotary_key_gradients_summed_by_megatron() -> Iterator[None]:
    """megatron-core's own function sums them, in place of ours."""
    from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region

    from slime_megatron import modules

    own = SimpleNamespace(apply=lambda x, group: copy_to_tensor_model_parallel_region(x))
    with no_experts_in_the_layout(), mock.patch.object(modules, "SumGradient", own):
        yield


@contextmanager
def latent_norms_summed() -> Iterator[None]:
    """The norms of latents are norms like others."""
    from slime_megatron import model

    with no_experts_in_the_layout(), mock.patch.object(model, "LatentRMSNorm", model.RMSNorm):
        yield


@contextmanager
def layout_not_checked() -> Iterator[None]:
    """Any layout is taken."""
    from slime_megatron.layout import ParallelLayout

    with mock.patch.object(ParallelLayout, "_check", return_value=None):
        yield


@contextmanager
def parameters_alone() -> Iterator[None]:
    """Only parameters travel, not buffers."""
    from slime_megatron import weights

    right = weights.own_tensors

    def own_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in right(model) if isinstance(tensor, torch.nn.Parameter))

    with mock.patch.object(weights, "own_tensors", own_tensors):
        yield


@contextmanager
def rope_type_not_given() -> Iterator[None]:
    """Latent attention has the rotary embedding that megatron-core gives it by itself."""
    from slime_megatron import configuration

    right = configuration.read_spec

    def read_spec(*args: Any) -> Any:
        spec = right(*args)
        for name in ("rope_type", "rotary_scaling_factor", "mscale", "mscale_all_dim"):
            del spec.config[name]
        return spec

    with mock.patch.object(configuration, "read_spec", read_spec):
        yield


def experts_not_scaled() -> Any:
    """What experts give is not multiplied by `routed_scaling_factor`."""
    return _configured(moe_router_topk_scaling_factor=None)


def router_bias_moves() -> Any:
    """The bias that chooses experts moves in every step, megatron-core's default."""
    return _configured(moe_router_bias_update_rate=1e-3)


def router_in_the_models_type() -> Any:
    """Routers compute in the type of the weights."""
    return _configured(moe_router_dtype=None)


@contextmanager
def split_weights_not_marked() -> Iterator[None]:
    """megatron-core is not told which weights are cut over tensor-parallel ranks."""
    from slime_megatron import weights

    with mock.patch.object(weights, "mark_split_weights", return_value=None):
        yield


@contextmanager
def steps_not_separated() -> Iterator[None]:
    """The parameters of an optimizer that was read from a checkpoint share a count of steps."""
    from slime_megatron import state

    with mock.patch.object(state, "_separate_steps", return_value=None):
        yield


# --------------------------------------------------------------------------------------------------- seen in the ranks


def probe(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    """Compare the cases, all of one layout or not, and then look at what no comparison shows. Two ranks."""
    work(cases, folder, found, note)
    leave()
    found["settings"] = _settings(folder)
    found["resumed"] = _resumed(folder)
    found["rerouted"] = _rerouted(folder)
    _hang(folder, found, note)


SETTINGS = (
    *("fp8", "fp4", "virtual_pipeline_model_parallel_size", "deallocate_pipeline_outputs", "calculate_per_token_loss"),
    *("moe_router_dtype", "moe_router_bias_update_rate", "moe_aux_loss_coeff", "moe_router_load_balancing_type"),
    *("rope_type", "rotary_scaling_factor", "moe_token_dispatcher_type", "variable_seq_lengths", "moe_grouped_gemm"),
)


def _settings(folder: Path) -> dict[str, Any]:
    """Fields of megatron-core's configuration that are wrong in silence with other values."""
    backend = make_backend(Case("glm4_moe_lite", data=2), folder)
    config = backend._model.module.config
    forget(backend)
    return {name: getattr(config, name) for name in SETTINGS}


def _resumed(folder: Path) -> dict[str, bool]:
    """Whether training goes on from a checkpoint as without one: as it is, and with a fault."""
    case = Case("qwen2", data=2)
    backend = make_backend(case, folder, LOSSES["sft"])
    batch = make_batch({}, ranks=2)
    for _ in range(2):
        backend.train_step(batch)
    path = folder / "state"
    path.mkdir(exist_ok=True)
    torch.distributed.barrier()
    backend.save_state(path)
    expected = [backend.train_step(batch) for _ in range(3)]
    forget(backend)

    def resumed() -> bool:
        other = make_backend(case, folder, LOSSES["sft"])
        other.load_state(path)
        steps = [other.train_step(batch) for _ in range(3)]
        forget(other)
        return steps == expected

    with steps_not_separated():
        planted = resumed()
    return {"right": resumed(), "planted": planted}


def _rerouted(folder: Path) -> dict[str, float]:
    """Which part of many random tokens a bfloat16 model's first router sends to other experts than the same numbers do in
    float64: as it is, and with a fault."""

    def share() -> float:
        backend = make_backend(Case("qwen3_moe", data=2, options={"bf16": True}), folder)
        router = backend._model.module.decoder.layers[0].mlp.router
        tokens = torch.randn(4000, router.weight.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
        with torch.no_grad():
            found = router.gating(tokens).double().topk(2).indices.sort().values
            expected = (tokens.double() @ router.weight.double().T).topk(2).indices.sort().values
        forget(backend)
        return (found != expected).any(1).double().mean().item()

    right = share()
    with router_in_the_models_type():
        return {"right": right, "planted": share()}


def _hang(folder: Path, found: dict[str, Any], note: Callable[[], None]) -> None:
    """Take a step with a row of nobody in place of each missing micro-batch, and then one without those, so that
    expert-parallel ranks have different numbers of micro-batches. Ends the process, also where the latter waits for ever."""
    leave()
    backend = make_backend(Case("qwen3_moe", data=2, expert=2), folder, LOSSES["sft"])
    batch = replace(make_batch({}, ranks=2), micro_batches=[[0, 1], [2, 3], [5], [], [6, 7], []])
    backend.train_step(batch)
    found["hangs"] = {"right": False, "planted": True}

    def give_up() -> None:
        time.sleep(8.0)
        note()
        os._exit(0)

    threading.Thread(target=give_up).start()
    own = backend._computation.own
    backend._computation.own = lambda batch: [micro_batch for micro_batch in own(batch) if micro_batch.samples]
    with suppress(RuntimeError):  # the other rank may give up first
        backend.train_step(batch)
        found["hangs"]["planted"] = False
    time.sleep(60.0)
