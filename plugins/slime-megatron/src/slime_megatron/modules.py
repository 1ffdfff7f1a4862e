"""Modules that take the place of megatron-core's where Transformer Engine is not used: norms, the core attention, post norms.

Plain torch; they run on CPU and GPU, in every floating-point type. megatron-core's own ones either refuse packed sequences
and sequence parallelism, or do not know value dimensions of their own, soft caps and windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from slime_core.tensors.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · w. Its weight is marked, so that its gradient is summed over tensor-parallel ranks under sequence
    parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        if self.eps is not None and _on_cpu_in_float32(x, self.weight):
            return rms_norm(x, self.weight, self.eps)
        return super().forward(x)


class LatentRMSNorm(RMSNorm):
    """The norm of the latents of multi-head latent attention. Without sequence parallelism every tensor-parallel rank has
    the whole gradient of its weight already, and megatron-core would sum it once more; it is averaged instead."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, getattr(config, "latent_norm_epsilon", None) or eps)
        if not config.sequence_parallel:
            self.weight.average_gradients_across_tp_domain = True  # type: ignore[attr-defined]


class ZeroCentredRMSNorm(nn.Module):
    """x / rms(x) · (1 + w), Gemma's. The weight is stored as in the Hugging Face file."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if _on_cpu_in_float32(x, self.weight):
            return rms_norm(x, 1.0 + self.weight, self.eps)
        return F.rms_norm(x, x.shape[-1:], None, self.eps) * (1.0 + self.weight)


def _on_cpu_in_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether the norm of the core is faster than torch's, and as exact."""
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


class PostNormAdd(nn.Module):
    """residual + norm(output of attention or MLP): the post norms of GLM-4 and Gemma-2, in the place where megatron-core adds
    bias, dropout and residual."""

    def __init__(self, config: TransformerConfig, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.norm = norm(config, config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[[Any, Tensor, float], Tensor]:
        def add(output_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            output, bias = output_with_bias
            summed: Tensor = residual + self.norm(output if bias is None else output + bias)
            return summed

        return add


class PackedCoreAttention(MegatronModule):  # type: ignore[misc]  # megatron-core has no types
    """Causal attention of packed sequences: each attends to itself alone.

    Under context parallelism every sequence is cut into 2·CP pieces, of which rank r has the r-th and the r-th from the end;
    keys and values are gathered from all ranks, queries stay where they are.

    Attributes:
        soft_cap: scores are limited to ± this by tanh; None: no limit.
        window: how many tokens, itself included, a token looks back at; None: all.
    """

    soft_cap: float | None = None
    window: int | None = None

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any = None,
        attention_type: Any = None,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self._scale = softmax_scale
        self._group = getattr(pg_collection, "cp", None) or parallel_state.get_context_parallel_group()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """(N, heads, d) queries, keys of N tokens with fewer heads, values with a dimension of their own → (N, heads · dv).
        Where `packed_seq_params` has `cu_seqlens_q_padded` too, tokens behind the last of `cu_seqlens_q` get zeros.

        Without `packed_seq_params`: (S, B, heads, d), B sequences of S tokens → (S, B, heads · dv).
        """
        size = self._group.size()
        if packed_seq_params is None:
            length, count = query.shape[:2]
            bounds = torch.arange(0, (count + 1) * length, length) * size
            query, key, value = (t.transpose(0, 1).flatten(0, 1) for t in (query, key, value))
        else:
            padded = packed_seq_params.cu_seqlens_q_padded
            bounds = packed_seq_params.cu_seqlens_q if padded is None else padded
        lengths = bounds.diff().tolist()
        if size == 1:
            parts = zip(
                torch.split(query, lengths), torch.split(key, lengths), torch.split(value, lengths), strict=True
            )
            out = torch.cat([self._attend(q, k, v, None) for q, k, v in parts])
        else:
            out = self._attend_over_ranks(query, key, value, lengths)
        out = out.flatten(1)
        if packed_seq_params is not None and padded is not None:  # tokens that fill up the row are zeros
            real = int(packed_seq_params.cu_seqlens_q[-1])
            out = torch.cat([out[:real], torch.zeros_like(out[real:])])
        if packed_seq_params is None:
            out = out.view(count, length, -1).transpose(0, 1).contiguous()
        return out

    def _attend_over_ranks(self, query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
        size, rank = self._group.size(), self._group.rank()
        own = [length // size for length in lengths]
        both = gather_from_sequence_parallel_region(torch.cat([key, value], -1).contiguous(), group=self._group)
        of_rank = [part.split(own) for part in both.chunk(size)]
        found = []
        for number, (q, length) in enumerate(zip(torch.split(query, own), lengths, strict=True)):
            piece = length // (2 * size)
            halves = [of_rank[r][number].split(piece) for r in range(size)] if piece else [(both[:0], both[:0])] * size
            whole = torch.cat([first for first, _ in halves] + [last for _, last in reversed(halves)])
            k, v = whole[..., : key.shape[-1]], whole[..., key.shape[-1] :]
            inside = torch.arange(piece, device=q.device)
            places = torch.cat([rank * piece + inside, (2 * size - 1 - rank) * piece + inside])
            found.append(self._attend(q, k, v, places))
        return torch.cat(found)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, places: Tensor | None) -> Tensor:
        """One sequence. `places` says which of its tokens the queries are; None: all, in order."""
        q, k, v = (t.transpose(0, 1) for t in (query, key, value))
        grouped = q.shape[0] != k.shape[0]
        if self.soft_cap is None and self.window is None:
            mask = None if places is None else places[:, None] >= torch.arange(k.shape[1], device=q.device)
            out = F.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=self._scale, enable_gqa=grouped
            )[0]
            return out.transpose(0, 1)
        if grouped:
            k, v = (t.repeat_interleave(q.shape[0] // k.shape[0], 0) for t in (k, v))
        # Scores in half precision would be rounded by every operation on them; products round only what they are of.
        scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
        scores = scores * (q.shape[-1] ** -0.5 if self._scale is None else self._scale)
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        at = torch.arange(k.shape[1], device=q.device)
        back = (at if places is None else places)[:, None] - at
        hidden = back < 0 if self.window is None else (back < 0) | (back >= self.window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
        return (weights @ v).transpose(0, 1)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Nothing: there are no weights."""
        return {}


class SumGradient(torch.autograd.Function):
    """The identity, whose gradient is summed over a group. megatron-core's own function for that loses the sum when the
    gradient is not contiguous, as that of rotary keys is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(summed, group=ctx.group)
        return summed, None


def sum_rotary_key_gradients(model: nn.Module) -> None:
    """Let the gradient of the rotary part of the latent keys, which all heads share, be summed over tensor-parallel ranks.

    Without Transformer Engine megatron-core leaves each rank with its own heads' part of it, and `linear_kv_down_proj` learns
    from half of its gradient, while the forward pass is right.
    """
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention

    for attention in (m for m in model.modules() if isinstance(m, MLASelfAttention)):
        attention.linear_kv_down_proj.register_forward_hook(_gathered_latent(attention.config))


def _gathered_latent(config: Any) -> Callable[..., Any]:
    sizes = [config.kv_lora_rank, config.qk_pos_emb_head_dim]

    def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        latent, bias = output
        if latent.size(-1) == sum(sizes):  # one rank, or a layer that is not split
            return output
        latent = gather_from_tensor_model_parallel_region(latent)
        if config.sequence_parallel:
            return scatter_to_sequence_parallel_region(latent), bias
        compressed, rotary = latent.split(sizes, -1)
        rotary = SumGradient.apply(rotary, parallel_state.get_tensor_model_parallel_group())  # type: ignore[no-untyped-call]
        return torch.cat([compressed, rotary], -1), bias

    return hook
