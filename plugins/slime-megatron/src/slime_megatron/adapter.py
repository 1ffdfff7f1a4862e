"""`Adapter`: the LoRA adapters of one of megatron-core's linear layers, cut over tensor-parallel ranks as the layer is.

One of megatron-core's linear layers can stand for several of the Hugging Face model, such as `linear_qkv` for `q_proj`, `k_proj`
and `v_proj`; each of those has an A (rank, in) and a B (out, rank) of its own. What travels between ranks has only the rank's
width: a column-parallel layer keeps all of A and its own rows of B, a row-parallel layer its own columns of A and all of B.
`slime_megatron.lora` chooses the layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from slime_megatron.adapter_names import FusedLayer
from slime_megatron.modules import SumGradient
from slime_megatron.names import GateUp, Split


class LowRank(nn.Module):
    """This rank's part of the A (rank, in) and the B (out, rank) of one Hugging Face layer; both are 0."""

    def __init__(self, rank: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, inputs, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype))


class Adapter(nn.ModuleDict):
    """The adapters of a linear layer, by the last parts of the Hugging Face layers' names: `LowRank`.

    Args:
        linear: the layer. Its `forward` is not touched here.
        fused: what it consists of.
        chosen: those of its Hugging Face layers that get an adapter.
        rank, scale: of all adapters; their outputs are multiplied by the scale.

    Attributes:
        enabled: whether the adapters count.
    """

    def __init__(self, linear: Any, fused: FusedLayer, chosen: list[str], rank: int, scale: float) -> None:
        ranks = linear.tp_group.size()
        inputs, dtype = linear.weight.shape[1], linear.weight.dtype
        widths = fused.outputs(ranks)
        parts = {name: LowRank(rank, inputs, widths[name], dtype) for name in chosen}
        super().__init__(parts)
        self._row, self._widths, self._cuts = fused.row, widths, fused.cuts
        self._groups = max(1, fused.groups // ranks)
        self._group, self._sequence = linear.tp_group, bool(linear.sequence_parallel)
        self._rank, self._scale = rank, scale
        self.enabled = True
        for part in parts.values():
            # Its gradient is that of this rank's tokens, and has to be summed over ranks.
            copied: Any = part.lora_B if fused.row else part.lora_A
            copied.sequence_parallel = self._sequence

    @torch.no_grad()
    def fill(self, name: str, a: Tensor) -> None:
        """Let a Hugging Face layer's A be this rank's part of a whole one."""
        part: Any = self[name]
        cut = self._cuts["lora_A"]
        part.lora_A.copy_(cut.shard(cut.join([a]), self._group.rank(), self._group.size()))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the layer's output.

        Args:
            x: (tokens, in) the layer's input on this rank.

        Returns:
            (tokens, out) like the layer's output on this rank.
        """
        parts: dict[str, Any] = dict(self.items())
        hidden = self._whole(F.linear(x, torch.cat([part.lora_A for part in parts.values()])))
        of = dict(zip(parts, torch.split(hidden, self._rank, -1), strict=True))
        outputs = [
            F.linear(of[name], parts[name].lora_B) if name in parts else hidden.new_zeros(len(hidden), width)
            for name, width in self._widths.items()
        ]
        if len(outputs) == 1:
            return outputs[0] * self._scale
        grouped = [output.view(len(output), self._groups, -1) for output in outputs]
        return torch.cat(grouped, -1).flatten(-2) * self._scale

    def _whole(self, hidden: Tensor) -> Tensor:
        """The (tokens, rank) products with A: of all inputs in a row-parallel layer, for all tokens in a column-parallel one."""
        if self._group.size() == 1:
            return hidden
        exchanged: Tensor
        if self._row and self._sequence:
            exchanged = reduce_scatter_to_sequence_parallel_region(hidden, group=self._group)
        elif self._row:
            exchanged = reduce_from_tensor_model_parallel_region(hidden, group=self._group)
        elif self._sequence:
            exchanged = gather_from_sequence_parallel_region(hidden, group=self._group)
        else:
            exchanged = SumGradient.apply(hidden, self._group)  # type: ignore[no-untyped-call]
        return exchanged

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """How the adapters lie in megatron-core's checkpoints."""
        cut = {f"{name}.{x}": how.dim for name in self for x, how in self._cuts.items() if isinstance(how, Split)}
        found: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            cut,
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        for name in self if isinstance(self._cuts["lora_B"], GateUp) else ():
            key = f"{prefix}{name}.lora_B"
            found[key] = apply_swiglu_sharded_factory(
                found[key], sharded_offsets, metadata.get("singleton_local_shards", False)
            )
        return found
