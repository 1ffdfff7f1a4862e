"""Experts of a few tokens in Triton kernels, which read each chosen expert once. Called by `slime_engine_local.model`.

transformers has a product of all experts at once, whose way in float32 leads over the host: a decoding step with it cannot be captured
as a CUDA graph. It goes on computing what many tokens join with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slime_engine_local.fused_proof import agree
from slime_engine_local.triton_operations import kernels_of_triton

FEW = 32
"""Up to so many tokens for an expert, on average, are computed here."""
_log = logging.getLogger(__name__)


def exchange_experts(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Have the experts of a model computed here where that gives what they compute, and say so in the log where it does not."""
    for name, module in model.named_modules():
        if not _is_known(module):
            continue
        plain: Callable[..., Tensor] = module.forward
        few = Experts(module, plain)
        tokens, chosen = 5, min(2, few.count)
        x = torch.randn(tokens, few.hidden, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        choice = torch.arange(tokens * chosen, device=device).view(tokens, chosen) % few.count
        shares = torch.linspace(0.2, 0.8, tokens * chosen, device=device).view(tokens, chosen).to(dtype)
        problem = "it computes something else"
        try:
            if agree(few(x, choice, shares), plain(x, choice, shares)):
                module.forward = few
                continue
        except Exception as error:  # a compiler raises what it likes
            problem = str(error)
        _log.warning("Experts are computed by transformers, not by a Triton kernel: for %s, %s.", name, problem)
        return


def _is_known(module: nn.Module) -> bool:
    """Whether a module may be experts with gates, in one tensor each, as transformers has them."""
    both = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not all(isinstance(weight, Tensor) and weight.ndim == 3 for weight in both):
        return False
    flags = {"has_gate": True, "has_bias": False, "is_transposed": False, "has_post_expert_norm": False}
    return all(getattr(module, flag, value) == value for flag, value in flags.items())


class Experts:
    """The forward pass of one layer's experts.

    Args:
        module: has the weights, `gate_up_proj` (E, 2 F, H) and `down_proj` (E, H, F).
        many: computes many tokens.
    """

    def __init__(self, module: Any, many: Callable[..., Tensor]) -> None:
        self._module, self._many = module, many
        self.count, self.hidden, self._inner = module.down_proj.shape

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Compute (T, H) from (T, H) and from the experts of each token and their shares, both (T, k)."""
        tokens, chosen = top_k_index.shape
        if tokens * chosen > FEW * self.count:
            return self._many(hidden_states, top_k_index, top_k_weights)
        kernels, x = kernels_of_triton(), hidden_states.contiguous()
        experts, order = top_k_index.reshape(-1).sort(stable=True)
        ends = torch.searchsorted(experts, torch.arange(self.count, device=x.device), right=True)
        active = x.new_empty(tokens * chosen, self._inner)
        rows = 16 if tokens * chosen <= 16 * self.count else 32
        kernels.expert_gates[(self.count, -(-self._inner // 32))](
            *(x, self._module.gate_up_proj, order, ends, active, self.hidden, self._inner),
            CHOSEN=chosen,
            ROWS=rows,
            COLUMNS=32,
            DEPTH=128 if x.dtype != torch.float32 else 32,
            num_warps=4,
            num_stages=3,
        )
        out = x.new_empty(tokens * chosen, self.hidden, dtype=torch.float32)
        kernels.expert_outputs[(self.count, -(-self.hidden // 64))](
            *(active, self._module.down_proj, order, ends, top_k_weights.reshape(-1), out, self.hidden, self._inner),
            ROWS=rows,
            COLUMNS=64,
            DEPTH=128 if x.dtype != torch.float32 else 32,
            num_warps=4,
            num_stages=3,
        )
        return out.view(tokens, chosen, self.hidden).sum(1).to(x.dtype)
