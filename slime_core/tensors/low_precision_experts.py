"""Experts of transformers that compute by a precision recipe. Called by `slime_core.tensors.low_precision`.

transformers keeps the experts of a layer as two stacks of matrices. A checkpoint has each expert's gate, up and down projection
as a matrix of its own, and that is what is quantised here: names, blocks and bytes are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slime_core.contracts.precision import Hardware, PrecisionRecipe
from slime_core.tensors.experts import TOGETHER
from slime_core.tensors.low_precision_products import Products

Shapes = dict[str, tuple[int, ...]]
"""{Hugging Face name: shape} of matrices."""


class LowPrecisionExperts(nn.Module):
    """Experts whose products go through `precision`: three for each expert, of gate, up and down.

    The tokens of an expert are one matrix, in the order that they have in the packed row. An expert without tokens computes a
    product without rows, which notes the magnitudes of its weights and no others. The weight that the router gives a token
    is multiplied with what goes into the down projection, as megatron-core does it, on hardware with FP8 too; transformers
    multiplies what comes out.
    """

    precision: Products
    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(T, H) hidden states, (T, k) experts of each token and what they weigh → (T, H)."""
        found = torch.zeros_like(hidden_states)
        stacks, choices = (self.gate_up_proj.unbind(), self.down_proj.unbind()), top_k_index.shape[1]
        by_expert, order = top_k_index.reshape(-1).sort(
            stable=True
        )  # so that a GPU is waited for once, and not for each expert
        every = torch.arange(len(stacks[0]), device=order.device, dtype=by_expert.dtype)
        parts = order.tensor_split(torch.searchsorted(by_expert, every[1:]).cpu())
        own: Any = self
        for expert, (both, down, part) in enumerate(zip(*stacks, parts, strict=True)):
            to_gate, to_up, to_down = list(self.precision)[3 * expert : 3 * expert + 3]
            tokens, places = part // choices, part % choices
            given, (gate, up) = hidden_states[tokens], both.chunk(2)
            inner = own._apply_gate(torch.cat([to_gate(given, gate), to_up(given, up)], -1))
            weighed = (inner * top_k_weights[tokens, places, None]).to(inner.dtype)
            found.index_add_(0, tokens, to_down(weighed, down).to(found.dtype))
        return found


def expert_matrices(name: str, module: nn.Module) -> Sequence[Shapes]:
    """The matrices of each expert of a module, gate, up and down, as a checkpoint has them; none if the module is no experts, or
    ones that are computed in another way: without a gate, with biases, transposed, or with a norm behind them.

    Args:
        name: of the module, in a transformers model.
    """
    own: Any = module
    both, down = getattr(own, "gate_up_proj", None), getattr(own, "down_proj", None)
    if not isinstance(both, nn.Parameter) or not isinstance(down, nn.Parameter) or (both.ndim, down.ndim) != (3, 3):
        return []
    layout = {"has_gate": True, "is_concatenated": True, "has_bias": False, "is_transposed": False}
    layout["has_post_expert_norm"] = False
    if any(getattr(own, key, None) is not value for key, value in layout.items()):
        return []
    (count, width, hidden), projections = both.shape, (*TOGETHER["gate_up_proj"], *TOGETHER["down_proj"])
    shapes = [(width // 2, hidden), (width // 2, hidden), tuple(down.shape[1:])]
    return [
        {f"{name}.{expert}.{kind}.weight": shape for kind, shape in zip(projections, shapes, strict=True)}
        for expert in range(count)
    ]


def swap_experts(
    module: nn.Module, matrices: Sequence[Shapes], recipe: PrecisionRecipe, hardware: Hardware | None
) -> None:
    """Let a module with these matrices compute by a recipe, on hardware or emulated (None). The module keeps its parameters, and
    becomes a `LowPrecisionExperts`."""
    products = Products(recipe, {name: shape for own in matrices for name, shape in own.items()}, hardware)
    kind = type(module)
    module.__class__ = type(f"LowPrecision{kind.__name__}", (LowPrecisionExperts, kind), {})
    stack = next(module.parameters())
    module.precision = products.to(stack.device).train(module.training)
