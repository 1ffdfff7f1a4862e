"""The work that `--balance-data` balances: as torch counts the products of real models, and evened out over the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_core.training.work import TOKENS, Work, work_of

N = 24
SIZES = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 20}
MOE = {**GROUPED, "moe_intermediate_size": 40, "num_experts_per_tok": 2}
LATENT = {
    **SIZES,
    "moe_intermediate_size": 40,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "heads of a common size": ("LlamaConfig", {**SIZES, "num_key_value_heads": 4}, 0),
    "grouped heads, wider than the model": ("Qwen3Config", GROUPED, 0),
    "tied embeddings": ("Qwen2Config", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}, 0),
    "experts": ("Qwen3MoeConfig", {**MOE, "num_experts": 4}, 0.03),
    "experts of Mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, 0.03),
    "latents, with a dense layer and shared experts": ("DeepseekV3Config", LATENT, 0.15),
}


def saved(folder: Path, family: str) -> Any:
    name, sizes, _ = FAMILIES[family]
    config = getattr(transformers, name)(**sizes)
    config.save_pretrained(folder)
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_the_work_of_tokens_is_what_torch_counts_of_the_products_of_the_model(family: str, tmp_path: Path) -> None:
    """With every token trained; torch counts both halves of attention, and the router, which is left out here."""
    config = saved(tmp_path, family)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, N, dtype=torch.long))
    work = work_of(str(tmp_path))
    estimate = work.token * N + work.trained * N + work.pair * N * N
    assert estimate == pytest.approx(counter.get_total_flops() / 2, rel=FAMILIES[family][2] or 0.001)


def test_a_configuration_that_does_not_say_has_its_tokens_counted_and_is_told_of(tmp_path: Path, caplog: Any) -> None:
    transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8).save_pretrained(tmp_path)
    assert work_of(str(tmp_path)) == TOKENS
    assert "--balance-data counts tokens, not work" in caplog.text


@given(st.integers(0, 30), st.lists(st.integers(0, 30), max_size=4))
def test_a_common_prompt_is_computed_once_and_every_response_attends_to_it_and_to_itself(
    prompt: int, responses: list[int]
) -> None:
    visible = prompt + sum(responses)
    pairs = sum(i + 1 for i in range(prompt)) + sum(prompt + i + 1 for length in responses for i in range(length))
    assert TOKENS.of_samples(prompt, responses, 5) == visible
    assert Work(7, 11, 13).of_samples(prompt, responses, 5) == 7 * visible + 55 + 13 * pairs


works = st.builds(Work, st.integers(1, 9), st.integers(0, 9), st.integers(0, 3))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60)), min_size=1, max_size=24),
    st.integers(2, 5),
    works,
)
def test_balanced_ranks_wait_for_each_other_at_most_the_sample_with_most_work(
    lengths: list[tuple[int, int]], ranks: int, work: Work
) -> None:
    samples = [Sample(tokens=[1] * (prompt + n), response_length=n, loss_mask=[1] * n) for prompt, n in lengths]
    batch = make_train_batch(samples, max_tokens=10**6, ranks=ranks, balance=True, work=work)
    loads = [work.of_samples(prompt, [n], n) for prompt, n in lengths]
    totals = [sum(loads[i] for micro_batch in batch.of_rank(rank, ranks) for i in micro_batch) for rank in range(ranks)]
    assert max(totals) - min(totals) <= max(loads)


@pytest.mark.parametrize(
    ("work", "beside"),
    [(TOKENS, 4), (Work(1, 0, 1), 0), (Work(1, 9, 0), 7)],
    ids=["tokens", "pairs of a long context", "trained tokens"],
)
def test_what_counts_decides_how_many_short_samples_go_beside_a_long_one(work: Work, beside: int) -> None:
    """64 tokens of which 4 are trained, and sixteen samples of 8 tokens that are all trained."""
    samples = [
        Sample(tokens=[1] * 64, response_length=4),
        *(Sample(tokens=[1] * 8, response_length=8) for _ in range(16)),
    ]
    batch = make_train_batch(samples, max_tokens=1000, ranks=2, balance=True, work=work)
    assert [len(own) - 1 for own in batch.micro_batches if 0 in own] == [beside]
