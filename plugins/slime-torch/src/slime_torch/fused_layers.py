"""Decoder layers whose passes between the matrix products are fused, and whose gradients of weights are summed in float32 by the
products themselves (`slime_core.tensors.fused`). For --bf16 on a GPU. Called by the backend.

A layer's forward is exchanged only if its modules are those of a known family, linear layers and RMS norms, and only if the
exchanged layer is about as near to the layer in float32 as autocast is, by its output and all gradients. A call that brings anything but a
packed row goes to the layer's own forward. Linear layers that are not torch's own, of FP8 or with an adapter, compute for themselves, and
what lies between them is fused.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from slime_core.tensors.fused.gated import gated, gated_of, is_silu
from slime_core.tensors.fused.heads import Heads, queries_keys, queries_keys_values
from slime_core.tensors.fused.norm import add_rms_norm, and_rms_norm
from slime_core.tensors.fused.products import products
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.low_precision import nothing_remembered
from slime_core.tensors.packed_rows import Segments
from slime_torch.arguments import FUSED
from slime_torch.attention import PACKED, packed_attention
from slime_torch.vision import language_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
        plain: the linear layers of attention, and of the MLP, are torch's own.
        rounded: the weights of its products.
        autocast: it is fused where autocast computes in the dtype of the rounded weights; else always.
    """

    heads: Heads
    eps: tuple[float, float]
    dense: bool
    plain: tuple[bool, bool]
    rounded: RoundedWeights
    autocast: bool


def fuse_layers(
    model: PreTrainedModel, rounded: RoundedWeights, device: torch.device | str = "cpu", autocast: bool = True
) -> int:
    """Exchange the forward of the layers of `model` that fit, and return how many were exchanged.

    Args:
        device: on which the model will compute; it may lie elsewhere.
        rounded: see `Plan`.
        autocast: see `Plan`.
    """
    found = 0
    proven: dict[tuple[object, ...], bool] = {}
    for layer in _decoder_layers(model):
        plan = _plan(layer, rounded, autocast)
        if plan is None:
            continue
        alike = type(layer), plan.heads, plan.eps, plan.dense, plan.plain
        if alike not in proven:
            proven[alike] = not autocast or _is_right(layer, plan, torch.device(device))
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
    if parts - {"q_norm", "k_norm"} != ATTENTION or not isinstance(size, int) or size % 2:
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
    if dense and not (is_silu(mlp.act_fn) and _biased_alike(mlp.gate_proj, mlp.up_proj)):
        return None
    heads = Heads(len(q.weight) // size, len(k.weight) // size, size, eps)
    plain = _are_plain(attention, ATTENTION), dense and _are_plain(mlp, GATED - {"act_fn"})
    return Plan(heads, (cast(float, norms[0]), cast(float, norms[1])), dense, plain, rounded, autocast)


def _are_plain(module: nn.Module, names: set[str]) -> bool:
    return all(type(getattr(module, name)) is nn.Linear for name in names)


def _biased_alike(*layers: nn.Linear) -> bool:
    return len({layer.bias is None for layer in layers}) == 1


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
    residual, normed = and_rms_norm(hidden_states, first.weight, plan.eps[0], dtype)
    attended = _attention(self.self_attn, plan, normed, **kwargs)
    hidden, normed = add_rms_norm(
        residual, attended, second.weight, plan.eps[1], dtype if plan.dense else hidden_states.dtype
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
    """(N, in) → (N, sum of out) of layers that read the same."""
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]
    return products(x, plan.rounded, weights, biases)


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
    cos, sin = (angle[0].contiguous() for angle in position_embeddings)
    by_query, by_key = (self.q_norm.weight, self.k_norm.weight) if plan.heads.eps else (None, None)
    if plan.plain[0]:
        projected = _linear(plan, x.squeeze(0), self.q_proj, self.k_proj, self.v_proj)
        found = queries_keys_values(projected, cos, sin, by_query, by_key, plan.heads)
    else:
        values = self.v_proj(x).squeeze(0).view(len(cos), plan.heads.keys, plan.heads.size)
        found = (
            *queries_keys(self.q_proj(x).squeeze(0), self.k_proj(x).squeeze(0), cos, sin, by_query, by_key, plan.heads),
            values,
        )
    dropout = self.attention_dropout if self.training else 0.0
    queries, keys, values = (part.transpose(0, 1)[None] for part in found)
    out, _ = packed_attention(
        self,
        queries,
        keys,
        values,
        attention_mask,
        scaling=self.scaling,
        dropout=dropout,
        sliding_window=getattr(self, "sliding_window", None),
        **kwargs,
    )
    out = out.reshape(len(cos), -1)
    return _linear(plan, out, self.o_proj)[None] if plan.plain[0] else self.o_proj(out[None])


def _mlp(self: Any, plan: Plan, x: Tensor) -> Tensor:
    """(1, N, H) → (1, N, H)."""
    if plan.plain[1]:
        return _linear(plan, gated(_linear(plan, x.squeeze(0), self.gate_proj, self.up_proj)), self.down_proj)[None]
    down: Tensor = self.down_proj(gated_of(self.gate_proj(x).squeeze(0), self.up_proj(x).squeeze(0))[None])
    return down


def _is_right(layer: nn.Module, plan: Plan, device: torch.device) -> bool:
    """Whether the exchanged layer is about as near to float32 as autocast with the layer's own forward, by its output, and by the
    gradients by its input and all weights, of a row of two sequences. If it is not, the reason is logged.

    Experts, which compute for themselves, are left out: by a single rounding a token goes to another one.
    """
    tried = _with_random_weights(layer, device, plan.dense)
    with nothing_remembered(tried):
        exact = _outputs_and_gradients(tried, plan, autocast=False, own=True)
        usual = _outputs_and_gradients(tried, plan, autocast=True, own=True)
        fused = _outputs_and_gradients(tried, plan, autocast=True)
    for name, right in exact.items():
        size, near, ours = right.norm(), (usual[name] - right).norm(), (fused[name] - right).norm()
        if not ours <= 3 * near + 2.0**-7 * size:
            found = f"{name} is off by {ours / size:.1e} of its size, {near / size:.1e} with autocast"
            _log.warning("%s is not fused: %s.", type(layer).__name__, found)
            return False
    return True


def _with_random_weights(layer: Any, device: torch.device, dense: bool) -> nn.Module:
    """A copy of a layer, which may have no weights yet, on the device that will compute it.

    Args:
        dense: else there is nothing in place of its MLP.
    """
    random = torch.Generator(device).manual_seed(0)
    made: dict[int, Any] = {}
    for name, old in layer.named_parameters():
        if name.startswith("mlp.") and not dense:
            continue
        new = torch.randn(old.shape, generator=random, device=device, dtype=old.dtype)
        if old.ndim >= 2:
            new *= old.shape[-1] ** -0.5
        else:
            new = 0.1 * new + (not name.endswith("bias"))
        made[id(old)] = nn.Parameter(new)
    for old in layer.buffers():
        made[id(old)] = torch.ones_like(old, device=device) if old.is_meta else old.to(device, copy=True)
    config = layer.self_attn.config
    if not dense:
        made[id(layer.mlp)] = nn.Identity()
    return cast(nn.Module, copy.deepcopy(layer, {**made, id(config): config}).eval())


def _outputs_and_gradients(layer: Any, plan: Plan, autocast: bool, own: bool = False) -> dict[str, Tensor]:
    """Of a row of random numbers, by the fused forward or by the layer's own."""
    lengths = (21, 27)
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    weight = layer.input_layernorm.weight
    random = torch.Generator().manual_seed(0)
    hidden, seed = (torch.randn(1, sum(lengths), len(weight), generator=random).to(weight) for _ in range(2))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(weight.device)
    angle = positions[:, None] * 10000.0 ** -torch.linspace(0, 1, plan.heads.size // 2, device=weight.device)
    angle = torch.cat((angle, angle), -1)[None]
    call = partial(type(layer).forward, layer) if own else partial(_computed, layer, plan)
    given = {"position_embeddings": (angle.cos(), angle.sin()), "attention_mask": None, "position_ids": positions[None]}
    hidden.requires_grad_()
    with torch.enable_grad(), torch.autocast(weight.device.type, plan.rounded.dtype, enabled=autocast):
        out = call(hidden, **given, segments=Segments.of([(n,) for n in lengths], weight.device))
        grads = torch.autograd.grad(out, [hidden, *parameters.values()], seed, allow_unused=True)
    named = zip(["the gradient by its input", *parameters], grads, strict=True)
    found = {name: grad.float() for name, grad in named if grad is not None}
    return {"its output": out.detach().float(), **found}
