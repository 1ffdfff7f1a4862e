"""Heads that tensor-parallel ranks do not divide are filled up with zeros: what is added, what is refused, and what becomes of a
training state under a layout that adds others. That no number of training knows of them is a part of
test_megatron_equality.py."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest import mock

import pytest
from megatron_cases import Case, forget, leave, make_backend, prepare
from megatron_models import LR, make_batch, make_config
from megatron_ranks import launch
from megatron_truth import STEPS, Truth

from slime_core.errors import ArgumentError, CheckpointError
from slime_megatron.families import FAMILIES
from slime_megatron.heads import fill_up_heads
from slime_megatron.names import Replicated, Split
from slime_megatron.spec import ConfigReader, ModelSpec

MODEL = "qwen2, 3 groups"
BUCKETS = "in the same stages, whose tied embedding has a bucket of its own"
WAYS = {
    "from heads that are filled up to none, and other stages": ({"tensor": 2}, {"pipeline": 2}),
    "from none to heads that are filled up": ({"pipeline": 2}, {"tensor": 2, "sequence": True}),
    BUCKETS: ({"pipeline": 2}, {"pipeline": 2}),
    "with one whole optimizer": ({"tensor": 2, "distributed": False}, {"data": 2, "distributed": False}),
}
TIMEOUT_S = 240


def spec_of(name: str, **changes: Any) -> ModelSpec:
    reader = ConfigReader(make_config(name, **changes).to_dict(), "tiny")
    return FAMILIES[reader.model_type](reader, lambda size: size)


@pytest.mark.parametrize(
    ("name", "ranks", "heads", "groups", "cost"),
    [
        ("qwen3, 3 groups", 2, 12, 4, "33%"),
        ("qwen3, 3 groups", 4, 12, 4, "33%"),
        ("qwen2, 3 groups", 8, 24, 8, "167%"),
        ("gemma2, 3 heads", 2, 4, 4, "33%"),
        ("glm4_moe_lite, 5 heads", 2, 6, None, "20%"),
        ("qwen3, 3 groups", 3, 9, 3, None),
        ("glm4_moe_lite, 5 heads", 5, 5, None, None),
        ("qwen3", 2, 4, 2, None),
    ],
)
def test_as_many_heads_are_added_as_the_ranks_need_and_a_remark_says_what_that_costs(
    name: str, ranks: int, heads: int, groups: int | None, cost: str | None
) -> None:
    spec = spec_of(name)
    before = (list(spec.rules), list(spec.remarks), spec.config["num_attention_heads"])
    fill_up_heads(spec, ranks)
    assert (spec.config["num_attention_heads"], spec.config.get("num_query_groups")) == (heads, groups)
    assert spec.zero_heads == heads - before[2]
    if cost is None:
        assert (spec.rules, spec.remarks) == before[:2]
    else:
        (remark,) = [remark for remark in spec.remarks if remark not in before[1]]
        assert f"--tensor-model-parallel-size {ranks} does not divide: {spec.zero_heads} heads of zeros" in remark
        assert f"{cost} more time and memory" in remark


def test_norms_of_single_heads_that_divide_by_zero_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"9 heads in 3 groups .* rms_norm_eps is 0"):
        fill_up_heads(spec_of("qwen3, 3 groups", rms_norm_eps=0.0), 2)
    fill_up_heads(spec_of("qwen2, 3 groups", rms_norm_eps=0.0), 2)  # it has none


def test_a_family_whose_rules_do_not_tell_where_heads_are_is_refused() -> None:
    spec = spec_of("qwen3, 3 groups")
    spec.rules = [rule for rule in spec.rules if type(rule.layout) in (Replicated, Split)]
    with pytest.raises(ArgumentError, match=r"--tensor-model-parallel-size 2 does not divide.*Attention and Heads"):
        fill_up_heads(spec, 2)


def work(folder: Path, found: dict[str, Any], note: Any) -> None:
    """Go on from states in other layouts: as they are, with a fault, and from one of another model."""
    from slime_megatron import state

    for way in WAYS:
        found[way] = resumed(folder, way)
        note()
    with mock.patch.object(state, "_whole_buckets", return_value=nullcontext()):
        found["planted"] = resumed(folder, BUCKETS)
    other = make_backend(Case("qwen2", tensor=2), folder)
    try:
        other.load_state(folder / BUCKETS)
    except CheckpointError as error:
        found["of another model"] = str(error)
    forget(other)


def resumed(folder: Path, way: str) -> float:
    """Train a step in one layout and go on in another; the largest difference of a weight from what transformers and AdamW make
    of it, relative to the learning rate."""
    import torch.distributed as dist

    truth = Truth.read(folder / Case(MODEL).truth)
    # The vocabulary is filled up in other ways too, since it has an odd number of tokens.
    first, second = (Case(MODEL, **sizes, options={"make_vocab_size_divisible_by": 1}) for sizes in WAYS[way])
    path = folder / way
    backend = make_backend(first, folder)
    batch = make_batch(truth.columns, ranks=backend.data_parallel_size)
    backend.train_step(batch)
    dist.barrier()
    if dist.get_rank() == 0:
        rmtree(path, ignore_errors=True)
        path.mkdir()
    dist.barrier()
    backend.save_state(path)
    forget(backend)
    leave()
    backend = make_backend(second, folder)
    backend.load_state(path)
    batch = make_batch(truth.columns, ranks=backend.data_parallel_size)
    for _ in range(STEPS - 1):
        backend.train_step(batch)
    off = max((weight - truth.weights[name]).abs().max().item() / LR for name, weight in backend.weights())
    forget(backend)
    leave()
    return off


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
def test_a_state_is_read_where_other_heads_are_filled_up(tmp_path: Path) -> None:
    for name in (MODEL, "qwen2"):
        prepare(Case(name), tmp_path)
    for rank in launch("test_megatron_heads:work", (tmp_path,), 2, tmp_path, TIMEOUT_S):
        assert "error" not in rank, rank["error"]
        assert {way: rank[way] <= 2e-4 for way in WAYS} == dict.fromkeys(WAYS, True), rank
        assert not rank["planted"] <= 2e-2, "megatron-core's own way to put a state together is right now"
        assert (
            "251 tokens, 9 heads, 3 heads of keys and values, and this one has 251 tokens, 4 heads"
            in (rank["of another model"])
        )
