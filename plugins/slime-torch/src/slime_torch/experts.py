"""Gives the experts of a model of transformers products of all experts at once, for a GPU. The backend calls `group_experts` once.

transformers multiplies all experts at once too, but in the dtype of their weights, which is float32 also where autocast says bfloat16:
torch then multiplies one expert after the other and waits for their sizes. What is different here:

* Products are in the dtype of autocast, as those of linear layers are. Weights are rounded to it once for all micro-batches of a step,
  and a micro-batch's gradients by them are added to earlier ones where they lie.
* A token is brought to its experts and back by reading alone, in the backward pass as well: no sums of which the order is left to chance.
* The weight that the router gives a token is multiplied with what goes into the down projection, as megatron-core does it, and not with
  what comes out, which is several times as wide.

A module's forward is exchanged only if its output and its gradients are reproduced on the device; every other module stays as it is.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from slime_core.tensors.fused.products import earlier_gradient
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.low_precision_experts import LowPrecisionExperts, expert_matrices

NEAR = 0.03
"""How far results in bfloat16 may be from those in float32: three factors of 2^-9 are rounded, and sums of them."""

_log = logging.getLogger(__name__)


def group_experts(model: nn.Module, device: torch.device, rounded: RoundedWeights | None = None) -> int:
    """Exchange the forward of the experts in `model`, and return how many were exchanged.

    Args:
        device: that they compute on.
        rounded: the weights of products; None: each micro-batch rounds them.
    """
    found, proven = 0, dict[type[nn.Module], str]()
    for name, module in model.named_modules():
        if isinstance(module, LowPrecisionExperts) or not expert_matrices(name, module):
            continue
        kind = type(module)
        if kind not in proven:
            proven[kind] = _difference(module, device)
            if proven[kind]:
                _log.warning(
                    f"Experts ({kind.__name__}) are computed as transformers does it, which is slow: {proven[kind]}"
                )
        if not proven[kind]:
            vars(module)["forward"] = MethodType(grouped_forward, module)  # so that a copied model uses its own weights
            vars(module)["rounded"] = rounded
            found += 1
    return found


def grouped_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """(T, H) hidden states, (T, k) experts of each token and what they weigh → (T, H)."""
    device, both, down, rounded = (
        hidden_states.device.type,
        self.gate_up_proj,
        self.down_proj,
        vars(self).get("rounded"),
    )
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else both.dtype
    ways = _Ways(top_k_index, both.shape[0])
    given: Tensor = _ToExperts.apply(hidden_states.to(dtype), *ways.tensors)  # type: ignore[no-untyped-call]
    inner = self._apply_gate(_product(given, both, ways.ends, rounded))
    weighed = (inner * top_k_weights.reshape(-1)[ways.order, None]).to(dtype)
    made = _product(weighed, down, ways.ends, rounded)
    found: Tensor = _FromExperts.apply(made, *ways.tensors)  # type: ignore[no-untyped-call]
    return found.to(hidden_states.dtype)


def _product(rows: Tensor, weights: Tensor, ends: Tensor, rounded: RoundedWeights | None) -> Tensor:
    """(S, K) rows, those of an expert together, and (E, N, K) → (S, N)."""
    found: Tensor = _Product.apply(rows, weights, ends, rounded)  # type: ignore[no-untyped-call]
    return found


def _narrow(weights: Tensor, dtype: torch.dtype, rounded: RoundedWeights | None) -> Tensor:
    """The weights in the dtype of a product."""
    if rounded is not None and rounded.dtype == dtype != weights.dtype and isinstance(weights, nn.Parameter):
        return rounded.of([weights])
    return weights.detach().to(dtype)


class _Product(torch.autograd.Function):
    """The products of rows (S, K) with weights (E, N, K), which are rounded forwards and backwards unless copies are kept: none lives from
    one to the other."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, ends: Tensor, rounded: RoundedWeights | None) -> Tensor:
        ctx.weights, ctx.rounded = weights, rounded
        ctx.save_for_backward(rows, ends)
        return F.grouped_mm(rows, _narrow(weights, rows.dtype, rounded).transpose(-2, -1), offs=ends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (rows, ends), weights = ctx.saved_tensors, ctx.weights
        gradient = gradient.contiguous()
        for_rows = None
        if ctx.needs_input_grad[0]:
            for_rows = F.grouped_mm(gradient, _narrow(weights, rows.dtype, ctx.rounded), offs=ends)
        if not ctx.needs_input_grad[1]:
            return for_rows, None, None, None
        for_weights = F.grouped_mm(gradient.t(), rows, offs=ends)
        if (earlier := earlier_gradient(weights)) is not None:
            # Reads and writes what it must: autograd would widen it first, in passes of their own.
            earlier.add_(for_weights)
            return for_rows, None, None, None
        return for_rows, for_weights.to(weights.dtype), None, None


class _Ways:
    """Where the rows of tokens lie: S = T · k of them, an expert's together, in the order of the tokens.

    Attributes:
        order: (S,) at each place, which row it is, counted token by token.
        ends: (E,) where the rows of each expert end, int32.
        tensors: (S,) at each place, which token it is; and (T, k) the places of each token.
    """

    def __init__(self, chosen: Tensor, experts: int) -> None:
        by_expert, self.order = chosen.reshape(-1).sort(stable=True)
        every = torch.arange(experts, device=chosen.device, dtype=by_expert.dtype)
        self.ends = torch.searchsorted(by_expert, every, right=True, out_int32=True)
        places = torch.empty_like(self.order)
        places.scatter_(0, self.order, torch.arange(len(self.order), device=chosen.device))
        self.tensors = self.order // chosen.shape[1], places.view(chosen.shape)


class _ToExperts(torch.autograd.Function):
    """(T, H) → (S, H): the rows that experts read."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows[tokens]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.saved_tensors[0]].sum(1), None, None


class _FromExperts(torch.autograd.Function):
    """(S, H) → (T, H): the sum of what the experts of a token made."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return rows[places].sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.saved_tensors[0]], None, None


# ------------------------------------------------------------------------------------------------------------------ the proof


def _difference(module: Any, device: torch.device) -> str:
    """What of small random experts of the module's kind comes out otherwise here; "" if nothing. One of them has no tokens."""
    random, count, (hidden, inner) = torch.Generator().manual_seed(0), module.gate_up_proj.shape[0], (64, 32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    k = min(2, count)
    chosen = torch.rand(48, max(k, count - 1), generator=random).topk(k).indices.to(device)
    given = [normal(48, hidden), torch.rand(48, k, generator=random).to(device)]
    weights = [normal(count, 2 * inner, hidden) / hidden**0.5, normal(count, hidden, inner) / inner**0.5]
    towards, compared = normal(48, hidden), []
    kinds = ("output", "gradient of the input", "gradient of the router", "gradient of gate and up", "gradient of down")
    own = vars(module).pop("forward", None)
    try:
        with torch.enable_grad():
            for grouped, narrow in ((False, False), (True, False), (True, device.type == "cuda")):
                leaves = [tensor.clone().requires_grad_() for tensor in (*given, *weights)]
                named = {"gate_up_proj": leaves[2], "down_proj": leaves[3]}
                if grouped:
                    vars(module)["forward"] = MethodType(grouped_forward, module)
                with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
                    output = functional_call(module, named, (leaves[0], chosen, leaves[1]))
                compared.append([output.detach(), *torch.autograd.grad(output, leaves, towards)])
    except Exception as error:  # whatever libraries that are not ours may raise
        return f"{type(error).__name__}: {error}"
    finally:
        vars(module).pop("forward", None)
        if own is not None:
            vars(module)["forward"] = own
    for found, near in zip(compared[1:], (1e-4, NEAR), strict=True):
        for kind, ours, right in zip(kinds, found, compared[0], strict=True):
            off = float((ours - right).norm() / right.norm())
            if not off < near:
                return f"{kind} is {off:.1e} off"
    return ""
