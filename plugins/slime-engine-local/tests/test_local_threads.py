"""The engine computes with fewer threads while others use the processors, and then the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from slime_engine_local import threads
from slime_engine_local.cache import CachedSequence, KVCache
from slime_engine_local.forward_pass import Chunk, ForwardPass
from slime_engine_local.model import LanguageModel

Look = Callable[[float], int]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Iterator[Look]:
    """Lets a second pass in which one thread waited for a share of the time, and returns how many threads are used then."""
    now, waited, before = 0.0, 0.0, torch.get_num_threads()
    monkeypatch.setattr(threads.time, "monotonic", lambda: now)
    monkeypatch.setattr(threads, "_waits", lambda: {"1": 0.0, "2": waited})
    torch.set_num_threads(4)
    count = threads.ThreadCount()

    def pass_second(share: float) -> int:
        nonlocal now, waited
        now, waited = now + 1.0, waited + share
        count.adapt()
        assert torch.get_num_threads() == count.count
        return count.count

    yield pass_second
    torch.set_num_threads(before)


def test_a_busy_machine_halves_the_threads_and_a_calm_one_brings_them_back(look: Look) -> None:
    assert [look(0.0), look(0.5), look(0.5), look(0.5)] == [4, 2, 1, 1]
    counts = [look(0.0) for _ in range(20)]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_a_try_that_fails_is_made_ever_more_seldom(look: Look) -> None:
    tries, count = [], look(0.9)
    for second in range(300):
        after = look(0.5 if count == 4 else 0.0)
        tries += [second] if after > count else []
        count = after
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 4 * gaps[0]


def test_other_threads_keep_their_number(look: Look) -> None:
    assert look(0.5) == 2
    found: list[int] = []
    other = threads.threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [4]


def test_the_system_tells_how_long_threads_wait() -> None:
    if Path("/proc/self/schedstat").exists():
        assert all(wait >= 0 for wait in threads._waits().values())
        assert threads._waits()


@torch.inference_mode()
def test_the_number_of_threads_does_not_change_a_bit(random_model: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2, "vocab_size": 5000}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    folder, trained = random_model(LlamaForCausalLM, LlamaConfig(**sizes, **heads))
    model, before = LanguageModel(str(folder), trained.float().state_dict()), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            cache = KVCache()
            rows = [CachedSequence(cache.add(90)) for _ in range(20)]
            for row in rows:
                model.next_logits([], ForwardPass(cache, [], [Chunk(row, range(80))], model.device))
                row.row.length = 80
            found.append(model.next_logits([3] * 20, ForwardPass(cache, rows, [], model.device)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
