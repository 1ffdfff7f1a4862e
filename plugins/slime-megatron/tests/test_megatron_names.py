"""Weights move between files, whole weights and the parts of tensor-parallel ranks, and no number changes on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron_models import FAMILIES, PARITY, as_in_a_file, make_config
from torch import Tensor

from slime_core.errors import CheckpointError
from slime_megatron.families import FAMILIES as KNOWN
from slime_megatron.names import Attention, GateUp, Heads, Layout, Names, Replicated, Rule, Split, Vocabulary
from slime_megatron.spec import ConfigReader, ModelSpec

RANKS = st.sampled_from([1, 2, 3, 4])


def numbered(*shape: int, start: int = 0) -> Tensor:
    """A tensor of numbers that occur once."""
    return torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64).view(shape)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[Tensor], int]:
    """A layout, tensors of a file for it, and a number of ranks that it can be cut for."""
    ranks, size = draw(RANKS), st.integers(1, 4)
    columns = draw(st.sampled_from([(), (draw(size),), (draw(size), draw(size))]))
    kind = draw(
        st.sampled_from(["replicated", "rows", "columns", "vocabulary", "gate_up", "fused", "heads", "attention"])
    )
    filled_up = draw(st.booleans())
    if kind == "replicated":
        return Replicated(), [numbered(draw(size), *columns)], ranks
    if kind == "heads":
        known, filling, each = draw(size), draw(st.integers(0, 3)), draw(size)
        filled = -(-(known + filling) // ranks) * ranks
        dim = draw(st.sampled_from([0, 1]))
        shape = (known * each, draw(size)) if dim == 0 else (draw(size), known * each)
        return Heads(dim, known, filled), [numbered(*shape)], ranks
    if kind == "columns":
        return Split(1), [numbered(draw(size), ranks * draw(size), *columns)], ranks
    if kind == "rows":
        return Split(0), [numbered(ranks * draw(size), *columns)], ranks
    if kind == "vocabulary":
        known, filling = draw(st.integers(1, 12)), draw(st.integers(0, 8))
        padded = -(-(known + filling) // ranks) * ranks
        return Vocabulary(0, known, padded), [numbered(known, *columns)], ranks
    if kind in ("gate_up", "fused"):
        half = ranks * draw(size)
        if kind == "fused":
            return GateUp(0, fused=True), [numbered(2 * half, *columns)], ranks
        return GateUp(), [numbered(half, *columns), numbered(half, *columns, start=1000)], ranks
    groups, shared, head = ranks * draw(size), draw(size), draw(size)
    known = draw(st.integers(1, groups)) if filled_up else groups
    sizes = [known * shared * head, known * head, known * head]
    tensors = [numbered(n, *columns, start=1000 * i) for i, n in enumerate(sizes)]
    return Attention(0, known * shared, known, head, groups if filled_up else 0), tensors, ranks


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@given(layouts())
def test_a_file_comes_back_from_a_whole_weight(made: tuple[Layout, list[Tensor], int]) -> None:
    layout, tensors, _ = made
    whole = layout.join(tensors)
    assert equal(layout.part(whole), tensors)
    assert torch.equal(layout.join(layout.part(whole)), whole)


@given(layouts())
def test_a_whole_weight_comes_back_from_the_parts_of_all_ranks(made: tuple[Layout, list[Tensor], int]) -> None:
    layout, tensors, ranks = made
    whole = layout.join(tensors)
    shards = [layout.shard(whole, rank, ranks) for rank in range(ranks)]
    assert torch.equal(layout.unshard(shards), whole)
    assert len({shard.shape for shard in shards}) == 1, "all ranks have equally much"
    if type(layout) is not Replicated:
        assert sorted(torch.cat([shard.flatten() for shard in shards]).tolist()) == sorted(whole.flatten().tolist())


@given(layouts())
def test_nothing_is_changed_in_place(made: tuple[Layout, list[Tensor], int]) -> None:
    layout, tensors, ranks = made
    before = [tensor.clone() for tensor in tensors]
    whole = layout.join(tensors)
    copy = whole.clone()
    layout.unshard([layout.shard(whole, rank, ranks) for rank in range(ranks)])
    layout.part(whole)
    assert equal(tensors, before)
    assert torch.equal(whole, copy)


@given(layouts())
def test_a_rank_has_whole_heads_and_its_part_of_gate_and_up(made: tuple[Layout, list[Tensor], int]) -> None:
    """What a rank has is what its own part of the file's tensors would make."""
    layout, tensors, ranks = made
    if not isinstance(layout, Attention | GateUp) or getattr(layout, "filled", 0) not in (
        0,
        getattr(layout, "groups", 0),
    ):
        return
    if isinstance(layout, GateUp):
        halves = tensors[0].chunk(2) if layout.fused else tensors
        small: Layout = GateUp()
    else:
        halves = tensors
        small = Attention(0, layout.heads // ranks, layout.groups // ranks, layout.head_dim)
    for rank in range(ranks):
        own = [tensor.chunk(ranks)[rank] for tensor in halves]
        assert torch.equal(layout.shard(layout.join(tensors), rank, ranks), small.join(own))


def test_a_vocabulary_is_filled_up_with_zeros_that_are_never_exported() -> None:
    layout = Vocabulary(0, 5, 8)
    rows = numbered(5, 2, start=1)
    whole = layout.join([rows])
    assert whole.shape == (8, 2)
    assert not whole[5:].any()
    assert equal(layout.part(whole + 1), [rows + 1])


def test_heads_are_filled_up_with_zeros_that_are_never_exported() -> None:
    columns = Heads(1, groups=3, filled=4)
    given = numbered(2, 6, start=1)
    whole = columns.join([given])
    assert whole.shape == (2, 8)
    assert not whole[:, 6:].any()
    assert equal(columns.part(whole + 1), [given + 1])
    together = Attention(0, heads=6, groups=3, head_dim=1, filled=4)
    parts = [numbered(6, start=1), numbered(3, start=10), numbered(3, start=20)]
    whole = together.join(parts)
    assert whole.shape == (16,)
    assert not whole[12:].any()
    assert equal(together.part(whole + 1), [part + 1 for part in parts])


def test_queries_keys_and_values_of_a_group_lie_together() -> None:
    layout = Attention(0, heads=4, groups=2, head_dim=1)
    whole = layout.join([torch.tensor([1.0, 2, 3, 4]), torch.tensor([10.0, 20]), torch.tensor([100.0, 200])])
    assert whole.tolist() == [1, 2, 10, 100, 3, 4, 20, 200]


def spec_of(name: str) -> ModelSpec:
    reader = ConfigReader(make_config(name).to_dict(), "tiny")
    return KNOWN[reader.model_type](reader, lambda size: -(-size // 16) * 16)


@pytest.mark.parametrize("name", [*FAMILIES, *PARITY])
def test_every_weight_of_a_checkpoint_has_one_place_in_megatron_core(name: str) -> None:
    """All weights of transformers' model are made from those that the rules speak of, each once, and none is left over."""
    from transformers import AutoModelForCausalLM

    config = make_config(name)
    model = AutoModelForCausalLM.from_config(config)
    kept = ("e_score_correction_bias",)
    buffers = ((n, b) for n, b in model.named_buffers() if n.endswith(kept))
    wanted = as_in_a_file([*model.named_parameters(), *buffers]).keys()
    found = [file for rule in spec_of(name).rules for file in numbers(rule, config)]
    assert len(found) == len(set(found))
    assert wanted <= set(found)


def numbers(rule: Rule, config: object) -> Iterator[str]:
    """The names in a file that a rule speaks of, for all layers and experts that a model may have."""
    layers = getattr(config, "num_hidden_layers")  # noqa: B009 - a configuration of any kind
    experts = next((getattr(config, n) for n in ("num_experts", "n_routed_experts") if hasattr(config, n)), 1)
    for file in rule.file:
        many_layers = range(layers) if "{layer}" in file else [0]
        many_experts = range(experts) if "{expert}" in file else [0]
        for layer in many_layers:
            for expert in many_experts:
                yield file.format(layer=layer, expert=expert)


NAMES = Names(
    [
        Rule("embedding.weight", ("model.embed.weight",), Vocabulary(0, 3, 4)),
        Rule(
            "layers.{layer}.fc1.weight",
            ("model.layers.{layer}.gate.weight", "model.layers.{layer}.up.weight"),
            GateUp(),
        ),
        Rule(
            "layers.{layer}.experts.{expert}.fc2.weight",
            ("model.layers.{layer}.experts.{expert}.down.weight",),
            Split(1),
        ),
    ]
)


def test_a_weight_with_numbers_is_found_by_its_rule() -> None:
    rule, names = NAMES.of("layers.12.experts.30.fc2.weight")
    assert rule.layout == Split(1)
    assert names == ("model.layers.12.experts.30.down.weight",)


def test_a_whole_weight_goes_to_the_files_of_its_layer() -> None:
    whole = numbered(4, 3)
    found = dict(NAMES.to_file("layers.7.fc1.weight", whole))
    assert list(found) == ["model.layers.7.gate.weight", "model.layers.7.up.weight"]
    assert equal(list(found.values()), list(whole.chunk(2)))


@pytest.mark.parametrize(
    "name", ["layers.x.fc1.weight", "layers.1.fc1.weight.more", "more.embedding.weight", "embeddingXweight"]
)
def test_a_weight_that_no_rule_knows_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(CheckpointError, match="would be lost in a conversion") as raised:
        NAMES.of(name)
    assert repr(name) in str(raised.value)
