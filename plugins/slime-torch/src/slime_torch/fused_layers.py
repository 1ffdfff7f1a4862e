"""Decoder layers whose passes between the matrix products are fused, and whose gradients of weights are summed in float32 by the
products themselves (`slime_core.tensors.fused`). For --bf16 on a GPU. Called by the backend. Linear layers in low precision keep their
own products, and what lies between them is fused all the same.

A layer's forward is exchanged only if its modules are those of a known family, linear layers and RMS norms, and only if the
exchanged layer is about as near to the layer in float32 as autocast is, by its output and all gradients. A call that brings anything but a
packed row goes to the layer's own forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slime_core.tensors.fused.gated import gated
from slime_core.tensors.fused.heads import Heads, queries_keys_values
from slime_core.tensors.fused.norm import add_rms_norm, rms_norm
from slime_core.tensors.fused.products import products
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.low_precision import LowPrecisionLinear, nothing_remembered
from slime_core.tensors.packed_rows import Segments
from slime_torch.arguments import FUSED
from slime_torch.attention import PACKED, packed_attention
from slime_torch.vision import language_model

_log = logging.getLogger(__name__)

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True)
class Plan:
    """How an exchanged layer computes.

    Attributes:
        heads: of its attention.
        eps: of its two norms.
        dense: its MLP is a gated one, which is fused as well; else it is called as it is.
        rounded: the weights of its products.
        autocast: it is fused where autocast computes in the dtype of the rounded weights; else always.
    """

    heads: Heads
    eps: tuple[float, float]
    dense: bool
    rounded: RoundedWeights
    autocast: bool


def fuse_layers(model: PreTrainedModel, rounded: RoundedWeights, autocast: bool = True) -> int:
    """Exchange the forward of the layers of `model` that fit, and return how many were exchanged.

    Args:
        rounded: see `Plan`.
        autocast: see `Plan`.
    """
    found = 0
    proven: dict[tuple[object, ...], bool] = {}
    for layer in _decoder_layers(model):
        plan = _plan(layer, rounded, autocast)
        if plan is None:
            continue
        alike = type(layer), plan.heads, plan.eps, plan.dense
        if alike not in proven:
            proven[alike] = not autocast or _is_right(layer, plan)
        if proven[alike]:
            vars(layer)["forward"] = MethodType(_forward, layer)  # so that a copied model uses its own weights
            vars(layer)["fused"] = plan
            found += 1
    if not found:
        _log.info("No layer of %s is fused: its layers are of no known family, or changed.", type(model).__name__)
    return found


def _decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    names = {f"{family}DecoderLayer" for family in FUSED.values()}
    return [module for module in language_model(model).modules() if type(module).__name__ in names]


def _plan(layer: Any, rounded: RoundedWeights, autocast: bool) -> Plan | None:
    """None: the layer has something that is not known here."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    norms = [_eps(getattr(layer, name, None)) for name in ("input_layernorm", "post_attention_layernorm")]
    children = {name for name, _ in layer.named_children()}
    wanted = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    if attention is None or mlp is None or children != wanted or None in norms or "forward" in vars(layer):
        return None
    parts = {name for name, child in attention.named_children() if any(True for _ in child.parameters())}
    size = getattr(attention, "head_dim", None)
    if (
        parts - {"q_norm", "k_norm"} != ATTENTION
        or not isinstance(size, int)
        or size % 2
        or not _are_plain(attention, ATTENTION)
    ):
        return None
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    alike = _biased_alike(q, k, v) and k.weight.shape == v.weight.shape
    if not alike or len(q.weight) % size or len(k.weight) % size or (q.weight.dtype == rounded.dtype and autocast):
        return None
    eps = 0.0
    if parts != ATTENTION:
        found = [_eps(getattr(attention, name, None)) for name in ("q_norm", "k_norm")]
        if not found[0] or found[0] != found[1] or attention.q_norm.weight.shape != (size,):
            return None
        eps = found[0]
    dense = {name for name, _ in mlp.named_children()} == GATED
    if dense and not (
        _are_plain(mlp, GATED - {"act_fn"}) and _is_silu(mlp.act_fn) and _biased_alike(mlp.gate_proj, mlp.up_proj)
    ):
        return None
    heads = Heads(len(q.weight) // size, len(k.weight) // size, size, eps)
    return Plan(heads, (cast(float, norms[0]), cast(float, norms[1])), dense, rounded, autocast)


def _are_plain(module: nn.Module, names: set[str]) -> bool:
    return all(type(getattr(module, name)) in (nn.Linear, LowPrecisionLinear) for name in names)


def _biased_alike(*layers: nn.Linear) -> bool:
    return len({layer.bias is None for layer in layers}) == 1


def _is_silu(activation: Callable[[Tensor], Tensor]) -> bool:
    x = torch.linspace(-4, 4, 9)
    return torch.allclose(activation(x), nn.functional.silu(x))


def _eps(norm: Any) -> float | None:
    """That of an RMS norm which `slime_torch.rms_norm` found to be one, whose weight is the factor itself; else None."""
    eps, offset, _ = getattr(norm, "rms_norm_of", (None, 0.0, None))
    return None if eps is None or offset else float(eps)


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What the layer's own forward computes."""
    return _computed(self, self.fused, hidden_states, *args, **kwargs)


def _computed(self: Any, plan: Plan, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    if args or not _fits(plan, self, hidden_states, kwargs):
        return type(self).forward(self, hidden_states, *args, **kwargs)
    first, second = self.input_layernorm, self.post_attention_layernorm
    dtype = plan.rounded.dtype
    normed = rms_norm(hidden_states, first.weight, plan.eps[0], dtype)
    attended = _attention(self.self_attn, plan, normed, **kwargs)
    hidden, normed = add_rms_norm(
        hidden_states, attended, second.weight, plan.eps[1], dtype if plan.dense else hidden_states.dtype
    )
    return hidden + (_mlp(self.mlp, plan, normed) if plan.dense else self.mlp(normed))


def _fits(plan: Plan, layer: Any, hidden: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a call is one with a packed row, in the dtype of the plan."""
    if plan.autocast and not (hidden.is_cuda and torch.is_autocast_enabled("cuda")):
        return False
    if plan.autocast and torch.get_autocast_dtype("cuda") != plan.rounded.dtype:
        return False
    angles = kwargs.get("position_embeddings")
    return (
        len(hidden) == 1
        and isinstance(kwargs.get("segments"), Segments)
        and kwargs.get("past_key_values") is None
        and layer.self_attn.config._attn_implementation == PACKED
        and angles is not None
        and angles[0].shape == (1, hidden.shape[1], plan.heads.size)
    )


def _linear(plan: Plan, x: Tensor, *layers: nn.Linear) -> Tensor:
    """(N, in) → (N, sum of out) of layers that read the same. In low precision each has a product of its own."""
    if any(isinstance(layer, LowPrecisionLinear) for layer in layers):
        found = [layer(x).to(x.dtype) for layer in layers]
        return found[0] if len(found) == 1 else torch.cat(found, -1)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]
    return products(x, plan.rounded.of(weights), weights, plan.rounded.of(biases) if biases else None, biases)


def _attention(
    self: Any,
    plan: Plan,
    x: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: None = None,
    **kwargs: Any,
) -> Tensor:
    """(1, N, H) → (1, N, H)."""
    projected = _linear(plan, x[0], self.q_proj, self.k_proj, self.v_proj)
    cos, sin = (angle[0].contiguous() for angle in position_embeddings)
    by_query, by_key = (self.q_norm.weight, self.k_norm.weight) if plan.heads.eps else (None, None)
    found = queries_keys_values(projected, cos, sin, by_query, by_key, plan.heads)
    dropout = self.attention_dropout if self.training else 0.0
    out, _ = packed_attention(
        self,
        *(part.transpose(0, 1)[None] for part in found),
        attention_mask,
        scaling=self.scaling,
        dropout=dropout,
        sliding_window=getattr(self, "sliding_window", None),
        **kwargs,
    )
    return _linear(plan, out.reshape(len(x[0]), -1), self.o_proj)[None]


def _mlp(self: Any, plan: Plan, x: Tensor) -> Tensor:
    """(1, N, H) → (1, N, H)."""
    return _linear(plan, gated(_linear(plan, x[0], self.gate_proj, self.up_proj)), self.down_proj)[None]


def _is_right(layer: nn.Module, plan: Plan) -> bool:
    """Whether the exchanged layer is about as near to float32 as autocast with the layer's own forward, by its output, and by the
    gradients by its input and all weights, of a row of two sequences. If it is not, the reason is logged.

    Single roundings differ between the two, and with them now and then the experts that a token goes to.
    """
    with nothing_remembered(layer):
        exact = _outputs_and_gradients(layer, plan, autocast=False, own=True)
        usual = _outputs_and_gradients(layer, plan, autocast=True, own=True)
        fused = _outputs_and_gradients(layer, plan, autocast=True)
    for number, (right, near, ours) in enumerate(zip(exact, usual, fused, strict=True)):
        size = right.norm()
        if not (ours - right).norm() <= 3 * (near - right).norm() + 2.0**-7 * size:
            name = ["its output", "the gradient by its input", *(name for name, _ in layer.named_parameters())][number]
            _log.warning(
                "%s is not fused: %s is off by %.1e of its size, %.1e with autocast.",
                type(layer).__name__,
                name,
                (ours - right).norm() / size,
                (near - right).norm() / size,
            )
            return False
    return True


def _outputs_and_gradients(layer: Any, plan: Plan, autocast: bool, own: bool = False) -> list[Tensor]:
    """Of a row of random numbers in [-2, 2], by the fused forward or by the layer's own."""
    lengths = (21, 27)
    parameters = list(layer.parameters())
    device, width = parameters[0].device, layer.input_layernorm.weight.shape[0]
    random = torch.Generator().manual_seed(0)
    hidden, seed = (torch.randn(1, sum(lengths), width, generator=random).to(device) for _ in range(2))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    angle = positions[:, None] * 10000.0 ** -torch.linspace(0, 1, plan.heads.size // 2, device=device)
    angle = torch.cat((angle, angle), -1)[None]
    hidden.requires_grad_()
    needed = [p.requires_grad for p in parameters]
    call = partial(type(layer).forward, layer) if own else partial(_computed, layer, plan)
    given = {"position_embeddings": (angle.cos(), angle.sin()), "attention_mask": None, "position_ids": positions[None]}
    try:
        with torch.enable_grad(), torch.autocast(device.type, plan.rounded.dtype, enabled=autocast):
            layer.requires_grad_(True)
            out = call(hidden, **given, segments=Segments.of([(n,) for n in lengths], device))
            grads = torch.autograd.grad(out, [hidden, *parameters], seed, allow_unused=True)
    finally:
        for parameter, need in zip(parameters, needed, strict=True):
            parameter.requires_grad_(need)
    return [part.float() for part in (out.detach(), *grads) if part is not None]
