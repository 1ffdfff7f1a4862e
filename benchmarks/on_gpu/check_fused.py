"""Fused layers: every kernel against torch's operations, and whole layers of every family that is fused, next to autocast."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.on_gpu.job import Findings, NotHere
from benchmarks.on_gpu.machine import Machine

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}


def fused(machine: Machine, found: Findings) -> None:
    """Kernels are off by single roundings to bfloat16; layers are compared where they are exchanged, which an exchanged one has passed."""
    if not find_spec("triton"):
        raise NotHere("there is no Triton")
    from transformers import AutoConfig, AutoModelForCausalLM

    from slime_core.tensors.fused.products import _ways
    from slime_core.tensors.fused.rounded import RoundedWeights
    from slime_core.tensors.fused_proof import LIMIT, distances, kernels_are_right
    from slime_torch.arguments import FUSED
    from slime_torch.fused_layers import fuse_layers
    from slime_torch.model import prepare
    from slime_torch.rms_norm import speed_up_norms

    found.note(at_the_start=f"{machine.seconds(lambda: kernels_are_right(machine.device)):.1f} s")
    for name, distance in distances(machine.device):
        found.within(name, distance, LIMIT)
    if machine.on_gpu:
        found.note(adds_to_gradients_by=[way.__name__ for way in _ways()])
    for family in FUSED:
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SHAPE, **(EXPERTS if "moe" in family else {}))
        causal: Any = AutoModelForCausalLM
        model = causal.from_config(config, dtype=torch.float32).to(machine.device)
        speed_up_norms(model)
        prepare(model)
        dtype = torch.bfloat16 if machine.on_gpu else torch.float32
        count = fuse_layers(model, RoundedWeights(dtype), machine.device, autocast=machine.on_gpu)
        found.holds(f"layers of {family} are fused", count == SHAPE["num_hidden_layers"])
