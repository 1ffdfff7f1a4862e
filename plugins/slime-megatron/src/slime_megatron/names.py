"""How weights are called and laid out in Hugging Face files and in megatron-core, both ways. Pure tensor work.

A `Rule` ties one weight of megatron-core to one or more of a file. Its `layout` says how the file's tensors make the whole
weight, and how that is cut over tensor-parallel ranks:

    whole = layout.join(tensors of the file)          tensors of the file = layout.part(whole)
    shard = layout.shard(whole, rank, size)           whole = layout.unshard(shards of all ranks)

All four are exact: they move numbers and never change one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slime_core.errors import CheckpointError


@dataclass(frozen=True)
class Replicated:
    """Every rank has the whole weight."""

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0]

    def part(self, whole: Tensor) -> list[Tensor]:
        return [whole]

    def shard(self, whole: Tensor, rank: int, size: int) -> Tensor:
        return whole

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        return shards[0]


@dataclass(frozen=True)
class Split(Replicated):
    """Cut along a dimension: 0 for layers whose outputs are split (column parallel), 1 for those whose inputs are."""

    dim: int = 0

    def shard(self, whole: Tensor, rank: int, size: int) -> Tensor:
        return whole.chunk(size, self.dim)[rank]

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(shards), self.dim) if len(shards) > 1 else shards[0]


@dataclass(frozen=True)
class Vocabulary(Split):
    """Rows of tokens, filled up with zero rows so that the ranks have equally many; those are never exported.

    Attributes:
        size: rows in the file.
        padded: rows in megatron-core.
    """

    size: int = 0
    padded: int = 0

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        (rows,) = tensors
        if len(rows) != self.size:
            raise CheckpointError(
                f"The checkpoint has {len(rows)} rows for tokens, but its configuration says vocab_size {self.size}."
            )
        return _fill_up(rows, 0, self.size, self.padded)

    def part(self, whole: Tensor) -> list[Tensor]:
        return [whole[: self.size]]


@dataclass(frozen=True)
class Heads(Split):
    """Rows or columns of attention's heads, those of a group one behind the other, filled up with groups of zeros if the ranks
    could not have equally many; those are never exported. See `slime_megatron.heads`.

    Attributes:
        groups: in the file.
        filled: groups in megatron-core; 0: as many.
    """

    groups: int = 1
    filled: int = 0

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return _fill_up(tensors[0], self.dim, self.groups, self.filled)

    def part(self, whole: Tensor) -> list[Tensor]:
        return [_known(whole, self.dim, self.groups, self.filled)]


@dataclass(frozen=True)
class GateUp(Split):
    """The gate and the up projection of a gated MLP, one above the other; each rank has its part of both.

    Attributes:
        fused: the file has them as one tensor.
    """

    fused: bool = False

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] if self.fused else torch.cat(list(tensors))

    def part(self, whole: Tensor) -> list[Tensor]:
        return [whole] if self.fused else list(whole.chunk(2))

    def shard(self, whole: Tensor, rank: int, size: int) -> Tensor:
        return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)]) if size > 1 else whole

    def unshard(self, shards: Sequence[Tensor]) -> Tensor:
        halves = [shard.chunk(2) for shard in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves]) if len(shards) > 1 else shards[0]


@dataclass(frozen=True)
class Attention(Split):
    """Queries, keys and values as one weight or bias: for each group of heads its queries, its key, its value.

    Attributes:
        heads, groups: of queries, and of keys and values, in the file.
        head_dim: of each of them.
        filled: groups in megatron-core, as in `Heads`; 0: as many.
    """

    heads: int = 1
    groups: int = 1
    head_dim: int = 1
    filled: int = 0

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        tail = tensors[0].shape[1:]
        together = torch.cat([t.reshape(self.groups, -1, *tail) for t in tensors], 1).reshape(-1, *tail)
        return _fill_up(together, 0, self.groups, self.filled)

    def part(self, whole: Tensor) -> list[Tensor]:
        tail = whole.shape[1:]
        grouped = _known(whole, 0, self.groups, self.filled).view(self.groups, -1, *tail)
        queries = self.heads // self.groups * self.head_dim
        return [t.reshape(-1, *tail) for t in torch.split(grouped, [queries, self.head_dim, self.head_dim], 1)]


Layout = Replicated


def _fill_up(known: Tensor, dim: int, count: int, filled: int) -> Tensor:
    """`count` equal parts of a dimension with as many zeros behind them as make `filled` of them."""
    if filled in (0, count):
        return known
    shape = list(known.shape)
    shape[dim] = shape[dim] // count * (filled - count)
    return torch.cat([known, known.new_zeros(shape)], dim)


def _known(whole: Tensor, dim: int, count: int, filled: int) -> Tensor:
    """What `_fill_up` was given."""
    return whole if filled in (0, count) else whole.narrow(dim, 0, whole.shape[dim] // filled * count)


@dataclass(frozen=True)
class Rule:
    """One weight of megatron-core and what makes it in a file.

    Attributes:
        megatron: its name, with {layer} for the number of the layer in the whole model and {expert} for that of the expert
            in the whole layer.
        file: the names in the file, with the same places.
        layout: see the top of this module.
        optional: a file may lack it; the weight keeps what it was made with then.
    """

    megatron: str
    file: tuple[str, ...]
    layout: Layout = field(default_factory=Replicated)
    optional: bool = False


_SYNONYMS = {
    r"(.*\.)self_attention\.linear_qkv\.layer_norm_weight": r"\1input_layernorm.weight",
    r"(.*\.self_attention\.)linear_(q|kv)_up_proj\.layer_norm_weight": r"\1\2_layernorm.weight",
    r"(.*\.)mlp\.linear_fc1\.layer_norm_weight": r"\1pre_mlp_layernorm.weight",
    r"(.*\.mlp\.experts\.)(linear_fc[12])\.weight(\d+)": r"\1local_experts.\3.\2.weight",
}
"""Weights of Transformer Engine's layers, which compute a norm together with what follows it and all experts of a rank in one
kernel, and what the rules call them."""


def as_in_rules(name: str) -> str:
    """The name that a weight has in rules, from the one that it has in the model."""
    for pattern, own in _SYNONYMS.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(own)
    return name


_NUMBERED = re.compile(r"\{(layer|expert)\}")


class Names:
    """All rules of a model.

    Args:
        rules: of every weight that any layer has; a model whose layers differ has rules for all of them.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules: list[tuple[Rule, re.Pattern[str]]] = []
        for rule in rules:
            self.add(rule)

    @property
    def rules(self) -> list[Rule]:
        """All of them."""
        return [rule for rule, _ in self._rules]

    def add(self, rule: Rule) -> None:
        """Know one more weight."""
        self._rules.append((rule, re.compile(self._pattern(rule.megatron) + "$")))

    @staticmethod
    def _pattern(name: str) -> str:
        parts = _NUMBERED.split(name)
        return "".join(f"(?P<{part}>\\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))

    def of(self, megatron: str) -> tuple[Rule, tuple[str, ...]]:
        """The rule of a weight with numbers of the whole model, and the names in the file that it stands for.

        Raises:
            CheckpointError: no rule knows it.
        """
        for rule, pattern in self._rules:
            if found := pattern.match(megatron):
                return rule, tuple(name.format(**found.groupdict()) for name in rule.file)
        raise CheckpointError(
            f"The model has a weight {megatron!r}, which the name map of its family does not know; it would be lost in a "
            "conversion. Add a rule for it to the family."
        )

    def to_file(self, megatron: str, whole: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the file that a whole weight stands for."""
        rule, names = self.of(megatron)
        yield from zip(names, rule.layout.part(whole), strict=True)
