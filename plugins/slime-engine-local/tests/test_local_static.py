"""`--local-decoding pages`: with fixed shapes requests get the same tokens and log-probs, and the host reads nothing while a step is
computed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from local_engine_cases import SHAPE, ask_at_once, weights_of
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from slime_core.contracts.engine import Generation, ScoredToken
from slime_core.tensors import transfer
from slime_engine_local import pages, static_decoding
from slime_engine_local.cache import Pool
from slime_engine_local.engine import LocalEngine
from slime_engine_local.errors import EngineError
from slime_engine_local.sampling import SamplingParams, choose_tokens
from slime_engine_local.static_decoding import StaticDecoding
from slime_engine_local.static_sampling import choose_on_device

Start = Callable[..., LocalEngine]
SHARED = [7, 9] * 11
CASES: list[tuple[list[int], dict[str, Any]]] = [
    ([5, 6, 7], {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}),
    ([9] * 33, {"max_new_tokens": 30, "seed": 1, "temperature": 1.3}),
    ([4], {"max_new_tokens": 60, "seed": 2, "top_p": 0.7}),
    ([11, 12], {"max_new_tokens": 20, "seed": 3, "top_k": 5, "ignore_eos": True}),
    ([13, 14], {"max_new_tokens": 30, "seed": 4, "top_p": 0.9, "top_k": 40, "min_new_tokens": 12}),
    *((SHARED, {"max_new_tokens": 9 + n, "seed": n, "ignore_eos": True}) for n in range(4)),
    *(([*SHARED, 3, n], {"max_new_tokens": 7, "seed": n, "stop": ["e"]}) for n in range(3)),
    ([5] * 100, {"max_new_tokens": 28, "seed": 9, "ignore_eos": True}),
    ([21], {"max_new_tokens": 1, "seed": 10}),
]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 8)


class NothingRead(TorchFunctionMode):
    """Fails where the host would wait for values of a device."""

    READS = frozenset(
        getattr(torch.Tensor, name)
        for name in [
            "tolist",
            "item",
            "numpy",
            "cpu",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
            "__len__",
            "nonzero",
            "masked_select",
            "unique",
        ]
        if name != "__len__"
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in self.READS, f"the host reads a tensor: {func}"
        return func(*args, **(kwargs or {}))


class NoShapeFromValues(TorchDispatchMode):
    """Fails where the shape of a result would depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(part in name for part in ("nonzero", "_local_scalar_dense", "masked_select", "unique")), name
        if "aten.index" in name and isinstance(args[1], (list, tuple)):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), name
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Watch every step, and list their shapes."""
    plain, shapes = StaticDecoding._compute, []

    def compute(self: Any, key: Any, given: torch.Tensor) -> torch.Tensor:
        shapes.append(key)
        with NothingRead(), NoShapeFromValues():
            return plain(self, key, given)

    with monkeypatch.context() as patch:
        patch.setattr(StaticDecoding, "_compute", compute)
        yield shapes


def same(found: list[Generation], expected: list[Generation]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
        assert (one.finish_reason, one.weight_versions, one.text) == (
            other.finish_reason,
            other.weight_versions,
            other.text,
        )


@pytest.mark.parametrize(("max_running", "max_tokens"), [(64, 65536), (3, 65536), (5, 130)])
def test_answers_are_those_of_the_other_way_to_decode(
    max_running: int, max_tokens: int, llama: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask_at_once(start(*llama, max_running, max_tokens), CASES)
    engine = start(*llama, max_running, max_tokens, local_decoding="pages")
    with watched(monkeypatch) as steps:
        found = ask_at_once(engine, CASES)
    same(found, expected)
    longest = max(len(answer.tokens) for answer in expected)
    assert len(steps) >= longest
    assert len(set(steps)) < 40
    held = engine._scheduler._static.pages
    engine._scheduler.call(lambda: None).result()
    assert (held.free, len(held), len(engine._scheduler._storage.cache)) == (held.count - 1, 0, 0)
    same(ask_at_once(engine, CASES), expected)


def test_sliding_windows_and_models_without_fused_layers(random_model: Any, start: Start) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    windows = Qwen2Config(
        **SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1, eos_token_id=1
    )
    for kind, config in (
        (Qwen2ForCausalLM, windows),
        (GPT2LMHeadModel, GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)),
    ):
        folder, model = random_model(kind, config)
        cases = [(prompt, {**params, "stop": None}) for prompt, params in CASES[:6]]
        expected = ask_at_once(start(folder, model), cases)
        same(ask_at_once(start(folder, model, local_decoding="pages"), cases), expected)


def test_the_step_that_was_begun_is_dropped_when_weights_change(llama: Any, start: Start) -> None:
    folder, model = llama
    newer = [(name, weight * 1.05) for name, weight in weights_of(model)]

    def run(decoding: str) -> tuple[Generation, list[ScoredToken]]:
        engine = start(folder, model, local_decoding=decoding)
        told: list[ScoredToken] = []

        def tell(token: ScoredToken) -> None:  # on the engine's thread, between two steps
            told.append(token)
            if len(told) == 6:
                engine._scheduler.call(update)

        def update() -> None:
            engine._scheduler.model.update(dict(newer))
            engine._scheduler.use(engine._scheduler.model, 2)

        params = {"max_new_tokens": 20, "seed": 3, "ignore_eos": True}
        return asyncio.run(engine._generate([5, 6, 7], params, None, None, tell)), told

    (found, told), (expected, _) = run("pages"), run("rows")
    same([found], [expected])
    assert found.weight_versions == [1] * 6 + [2] * 14
    assert [token.token for token in told] == found.tokens


def test_the_likeliest_tokens_are_told_too(llama: Any, start: Start) -> None:
    def run(decoding: str) -> list[ScoredToken]:
        told: list[ScoredToken] = []
        engine = start(*llama, local_decoding=decoding)
        asyncio.run(engine.stream([5, 6], {"max_new_tokens": 9, "seed": 1, "ignore_eos": True}, told.append, 3))
        return told

    found, expected = run("pages"), run("rows")
    assert [t.token for t in found] == [t.token for t in expected]
    assert [[n for n, _ in t.likeliest] for t in found] == [[n for n, _ in t.likeliest] for t in expected]


def test_after_offload_and_a_failure_the_answers_are_the_same_ones(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model, local_decoding="pages")
    before = ask_at_once(engine, CASES[:3])
    engine.offload()
    assert engine._scheduler._static is None
    engine.onload()
    same(ask_at_once(engine, CASES[:3]), before)
    engine.update_weights([(name, weight * float("nan")) for name, weight in weights_of(model)], version=2)
    with pytest.raises(EngineError, match="NaN or infinite"):
        ask_at_once(engine, CASES[:3])
    engine.update_weights(weights_of(model), version=1)
    same(ask_at_once(engine, CASES[:3]), before)


def test_requests_in_pages_keep_no_rows(llama: Any, start: Start) -> None:
    engine = start(*llama, local_decoding="pages")

    async def one_after_the_other() -> tuple[int, int]:
        asked = []
        for first in range(5, 9):
            begun = asyncio.Event()
            params = {"max_new_tokens": 100, "ignore_eos": True}
            asked.append(asyncio.create_task(engine.stream([first] * 9, params, lambda _, begun=begun: begun.set())))
            await begun.wait()
        with engine.hold():
            await asyncio.wrap_future(engine._scheduler.call(lambda: None))  # no step is being made
            gc.collect()
            found = sum(isinstance(thing, Pool) and bool(thing._layers) for thing in gc.get_objects())
            running = len(engine._scheduler._running)
        await asyncio.gather(*asked)
        return found, running

    found, running = asyncio.run(one_after_the_other())
    assert running > 1
    assert found == 0


def test_a_model_that_computes_something_else_with_fixed_shapes_is_refused(
    llama: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pages.attention_over_pages
    monkeypatch.setattr(
        "slime_engine_local.static_proof.attention_over_pages",
        lambda q, k, v, table, lengths, *more: right(q, k, v, table, lengths - 1, *more),
    )
    with pytest.raises(EngineError, match="--local-decoding pages does not fit this model: its logits are others"):
        ask_at_once(start(*llama, local_decoding="pages"), CASES[:1])
    assert start(*llama)._scheduler._static is None  # a CPU decodes in rows unless it is asked for pages


def test_tokens_are_chosen_on_the_device_as_on_the_host() -> None:
    random = torch.Generator().manual_seed(0)
    rows = 400
    logits = 3 * torch.randn(rows, 700, dtype=torch.float64, generator=random)
    draws = torch.rand(rows, dtype=torch.float64, generator=random).tolist()
    limits = [(0.5, -1), (1.0, 3), (0.9, 20), (1.0, -1)]
    params = [
        SamplingParams(1, temperature=n % 5 / 2, top_p=limits[n % 4][0], top_k=limits[n % 4][1]) for n in range(rows)
    ]
    expected, log_probs = choose_tokens(logits.clone(), params, draws)
    temperatures, top_p, top_k = (
        torch.tensor(values, dtype=torch.float64)
        for values in (
            [p.temperature for p in params],
            [p.top_p for p in params],
            [p.top_k if p.top_k > 0 else 2**31 for p in params],
        )
    )
    found = choose_on_device(logits, temperatures, torch.tensor(draws, dtype=torch.float64), top_p, top_k, True)
    assert found[:, 0].tolist() == expected
    assert found[:, 1].tolist() == pytest.approx(log_probs, abs=1e-12)
    assert found[:, 2].all()


def test_many_requests_take_no_more_copies_to_the_device_than_two(
    llama: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = 0

    def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        nonlocal copies
        copies += 1
        return transfer.sent(tensor, device)

    monkeypatch.setattr(pages, "sent", sent)
    monkeypatch.setattr(static_decoding, "sent", sent)
    monkeypatch.setattr(pages, "numbers_on", lambda device, *numbers: sent(torch.tensor(*numbers), device))
    found = []
    for count in (2, 12):
        engine = start(*llama, local_decoding="pages")
        cases = [([5, 6, n], {"max_new_tokens": 20, "seed": n, "ignore_eos": True}) for n in range(count)]
        ask_at_once(engine, cases[:1])  # which compares logits first
        copies = 0
        ask_at_once(engine, cases)
        found.append(copies)
    assert found == [22, 22]  # slots, their pages and places of tokens, then one for each of 19 steps
