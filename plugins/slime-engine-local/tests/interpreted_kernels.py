"""Triton kernels compute what plain operations do, here by triton's interpreter; and an engine that decodes with them gives the same
answers. tests/test_interpreted_kernels.py runs these tests in a process of their own, whose triton interprets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from local_engine_cases import SHAPE, ask_at_once
from torch import nn

from slime_core.tensors.fused.launch import kernels_on
from slime_engine_local import model, pages, static_proof, triton_operations
from slime_engine_local.engine import LocalEngine
from slime_engine_local.layer_operations import HeadShape, Places, PlainOperations
from slime_engine_local.pages import attention_over_pages
from slime_engine_local.static_sampling import choose_on_device
from slime_engine_local.triton_experts import Experts, exchange_experts
from slime_engine_local.triton_operations import TritonOperations, choose_by_triton, triton_over_pages

pytest.importorskip("triton", reason="there is no triton here")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here; benchmarks.gpu compares them"
)


@pytest.fixture(autouse=True)
def kernels_of_the_trainer() -> Iterator[None]:
    """Which the engine uses too."""
    with kernels_on("cpu"):
        yield


class Norm(nn.Module):
    variance_epsilon = 1e-5

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.3 * torch.randn(size), requires_grad=False)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("heads", "keys", "size", "page", "lengths", "window", "splits"),
    [
        (4, 2, 16, 32, [1, 31, 32, 33, 64, 95], None, 1),
        (4, 2, 16, 32, [1, 31, 32, 33, 64, 95], None, 4),
        (4, 4, 64, 64, [130, 2, 64], 17, 2),
        (8, 1, 24, 8, [1, 8, 9, 40], 5, 1),
        (20, 1, 128, 64, [200, 65], 64, 8),
        (2, 2, 256, 16, [33], None, None),
    ],
)
def test_attention_over_pages_is_that_of_plain_operations(
    heads: int, keys: int, size: int, page: int, lengths: list[int], window: int | None, splits: int | None
) -> None:
    torch.manual_seed(0)
    rows, width = len(lengths), -(-max(lengths) // page) + 1
    stored = [torch.full((rows * width + 1, page, keys, size), float("nan")) for _ in range(2)]
    table = (torch.randperm(rows * width) + 1).view(rows, width).int()
    for row, length in enumerate(lengths):  # what no sequence has is not a number, and must not be read
        for token in range(length):
            for one in stored:
                one[table[row, token // page], token % page] = torch.randn(keys, size)
    query, counts = torch.randn(rows, heads, size), torch.tensor(lengths, dtype=torch.int32)
    found = triton_over_pages(query, *stored, table, counts, 0.3, window, splits=splits)
    expected = attention_over_pages(query, *(s.nan_to_num() for s in stored), table, counts, 0.3, window)
    close(found, expected)


@pytest.mark.parametrize(("queries", "keys", "size", "norms"), [(4, 2, 16, True), (3, 1, 24, False), (9, 9, 64, True)])
@pytest.mark.parametrize("paged", [False, True])
def test_norms_positions_and_stores_are_those_of_plain_operations(
    queries: int, keys: int, size: int, norms: bool, paged: bool
) -> None:
    torch.manual_seed(0)
    rows = 5
    heads = HeadShape(queries, keys, size, (Norm(size), Norm(size)) if norms else ())
    projected, cosine, sine = (torch.randn(rows, n) for n in ((queries + 2 * keys) * size, size, size))
    made: list[list[torch.Tensor]] = []
    for operations in (TritonOperations(), PlainOperations()):
        places = None
        if paged:
            places = Places(*(torch.zeros(4, 8, keys, size) for _ in range(2)), torch.tensor([9, 31, 0, 17, 8]))
        query, key, value = operations.encode(projected, heads, cosine, sine, places)
        made.append([query, *((key, value) if places is None else (places.keys, places.values))])
    for found, expected in zip(*made, strict=True):
        close(found, expected)


@pytest.mark.parametrize("size", [1, 48, 1500])
def test_norms_of_sums_and_gates_are_those_of_plain_operations(size: int) -> None:
    torch.manual_seed(0)
    mine, plain, norm = TritonOperations(), PlainOperations(), Norm(size)
    x, added, gate_up = torch.randn(3, size), torch.randn(3, size), 3 * torch.randn(3, 2 * size)
    for more in (None, added):
        for found, expected in zip(
            mine.add_norm(mine.residual(x), more, norm), plain.add_norm(x, more, norm), strict=True
        ):
            close(found, expected)
    for activation in (nn.SiLU(), nn.GELU()):
        close(mine.gated(gate_up, activation), plain.gated(gate_up, activation))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for numbers that are not finite
@pytest.mark.parametrize("vocabulary", [7, 256, 5000])
def test_tokens_are_chosen_as_plain_operations_choose_them(vocabulary: int) -> None:
    torch.manual_seed(0)
    rows = 12
    logits = 3 * torch.randn(rows, vocabulary)
    logits[1, vocabulary // 2 :] = -torch.inf
    draws = torch.rand(rows, dtype=torch.float64)
    draws[:2] = 1 - 2**-48
    draws[2] = 0
    temperatures = torch.tensor([n % 4 / 2 for n in range(rows)], dtype=torch.float64)
    none = torch.ones(rows, dtype=torch.float64)
    expected = choose_on_device(logits, temperatures, draws, none, none * 2**31, False)
    found = choose_by_triton(logits, temperatures, draws)
    assert found[:, 0].tolist() == expected[:, 0].tolist()
    close(found, expected)
    for row, wrong in enumerate((torch.nan, torch.inf, -torch.inf), 3):
        logits[row] = wrong
    finite = choose_by_triton(logits[:7], temperatures[:7], draws[:7])[:, 2]
    assert finite.tolist() == [1, 1, 1, 0, 0, 0, 1]


def test_an_engine_with_kernels_gives_the_answers_of_one_without(
    random_model: Any,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**{**SHAPE, "num_hidden_layers": 1}, num_key_value_heads=2, head_dim=16, eos_token_id=1)
    folder, reference = random_model(Qwen3ForCausalLM, config)
    reference.float()
    monkeypatch.setattr(pages, "PAGE", 8)
    cases: list[tuple[list[int], dict[str, Any]]] = [
        ([5, 6, 7], {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True}),
        ([9] * 14, {"max_new_tokens": 3, "seed": 1, "ignore_eos": True}),
    ]
    expected = ask_at_once(start(folder, reference), cases)
    for module in (model, static_proof):
        monkeypatch.setattr(module, "fits", lambda device, dtype: dtype in triton_operations.DTYPES)
    engine = start(folder, reference, local_decoding="pages")
    found = ask_at_once(engine, cases)
    static = engine._scheduler._static
    assert static is not None
    assert static._kernel is triton_over_pages
    assert static._choose is choose_by_triton
    decoder = engine._scheduler.model._decoder
    assert isinstance(decoder._operations, TritonOperations)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_experts_of_a_few_tokens_are_those_of_transformers(dtype: torch.dtype) -> None:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    torch.manual_seed(0)
    config = Qwen3MoeConfig(hidden_size=48, moe_intermediate_size=40, num_experts=5, num_experts_per_tok=2)
    module = Qwen3MoeExperts(config).to(dtype).requires_grad_(False)
    for weight in module.parameters():
        weight.normal_(std=0.2)
    plain = module.forward
    exchange_experts(module, dtype, torch.device("cpu"))
    assert isinstance(module.forward, Experts)
    x, shares = torch.randn(37, 48).to(dtype), torch.rand(37, 2).to(dtype)
    choice = torch.stack([torch.tensor([1, 3])] * 30 + [torch.tensor([4, 0])] * 7)  # nobody chooses 2, 30 choose 1
    found, expected = module.forward(x, choice, shares), plain(x, choice, shares)
    unit = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=unit, rtol=unit)
