"""With `--offload` the engine gives back its memory, and goes on afterwards as if nothing had happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from local_engine_cases import Passes, all_there, ask, ask_at_once, engine_args, until, weights_of

from slime_core.contracts.engine import Generation
from slime_core.errors import ArgumentError
from slime_engine_local.engine import LocalEngine

Start = Callable[..., LocalEngine]
CASES = [([n + 5] * 3 + list(range(20, 40)), {"max_new_tokens": 12, "seed": n, "ignore_eos": True}) for n in range(4)]
LONG = ([5, 6, 7], {"max_new_tokens": 100, "seed": 1, "ignore_eos": True})


def held_tensors(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that can be reached from an object of the engine."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from held_tensors(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            yield from held_tensors(value, seen)
    elif type(thing).__module__.partition(".")[0] in ("slime_engine_local", "torch", "transformers"):
        yield from held_tensors(getattr(thing, "__dict__", {}), seen)


def memory(engine: LocalEngine) -> int:
    """The bytes that the scheduler and its model hold, but for scalars."""
    engine._scheduler.call(lambda: None).result()  # after the step that answered, which also frees keys and values
    found = held_tensors(engine._scheduler.__dict__, set())
    return sum(tensor.untyped_storage().nbytes() for tensor in found if tensor.ndim)


@pytest.mark.parametrize("joined", [True, False])
def test_memory_is_given_back_and_the_answers_are_the_same_ones(
    joined: bool, random_model: Any, llama: Any, start: Start
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder, model = (
        llama if joined else random_model(GPT2LMHeadModel, GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4))
    )
    engine = start(folder, model)
    assert (engine._scheduler.model._decoder is not None) == joined
    before = ask_at_once(engine, CASES)
    there = memory(engine)
    assert there >= sum(tensor.nbytes for _, tensor in weights_of(model))
    for _ in range(2):
        for _ in range(2):
            engine.offload()
        copies = sum(len(piece) for _, pieces in engine._scheduler._offloaded._kept for piece in pieces)
        assert memory(engine) == 0 < copies
        for _ in range(2):
            engine.onload()
        assert memory(engine) == there
        assert ask_at_once(engine, CASES) == before  # log-probs and versions too


def test_new_weights_are_taken_afterwards(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model)
    old = ask_at_once(engine, CASES)
    engine.offload()
    engine.onload()
    engine.update_weights([(name, tensor * 1.1) for name, tensor in weights_of(model)], 2)
    fresh = start(folder)
    fresh.update_weights([(name, tensor * 1.1) for name, tensor in weights_of(model)], 2)
    assert ask_at_once(engine, CASES) == ask_at_once(fresh, CASES) != old


def test_what_runs_waits_meanwhile_and_goes_on(llama: Any, start: Start) -> None:
    engine = start(*llama)
    (expected,) = ask(engine, [LONG])
    reached = asyncio.Event()

    async def scenario() -> Generation:
        loop, scheduler = asyncio.get_running_loop(), engine._scheduler

        def pause(number: int) -> None:
            if number == 20:
                scheduler.hold(1)
                loop.call_soon_threadsafe(reached.set)

        passes = Passes(engine, pause)
        task = asyncio.create_task(engine.generate(*LONG))
        await reached.wait()
        await asyncio.to_thread(engine.offload)
        scheduler.hold(-1)
        assert len(scheduler._storage.cache) == 0
        await asyncio.sleep(0.05)
        assert len(passes.sizes) == 20
        assert not task.done()
        await asyncio.to_thread(engine.onload)
        return await task

    answer = asyncio.run(scenario())
    assert answer.tokens == expected.tokens
    assert answer.log_probs == pytest.approx(expected.log_probs, rel=0, abs=1e-10)


@pytest.mark.parametrize("loaded", [True, False])
def test_what_is_asked_meanwhile_is_answered_afterwards(
    loaded: bool, tiny_model: Any, llama: Any, start: Start
) -> None:
    engine = (
        start(*llama) if loaded else start(tiny_model)
    )  # without weights it reads the checkpoint's when it is asked
    engine.offload()

    async def scenario() -> Generation:
        task = asyncio.create_task(engine.generate(*LONG))
        await asyncio.to_thread(until, all_there(engine, 1))
        await asyncio.sleep(0.05)
        assert (engine._scheduler.model is not None) == loaded
        assert not task.done()
        await asyncio.to_thread(engine.onload)
        return await task

    assert len(asyncio.run(scenario()).tokens) == 100


def test_an_engine_without_memory_is_closed_at_once(llama: Any, start: Start) -> None:
    engine = start(*llama)
    engine.offload()
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 10
    assert not engine._scheduler._thread.is_alive()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the complaint is that there is no GPU")
def test_without_a_gpu_it_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ArgumentError, match="--offload needs a GPU: the engine 'local' generates on the CPU"):
        LocalEngine(engine_args(tiny_model, colocate=True, offload=True))
    LocalEngine(engine_args(tiny_model, offload=True)).close()  # without --colocate it has no effect


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures the memory of a GPU")
def test_the_memory_of_a_gpu_is_free_in_between(random_model: Any, start: Start) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=300, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, eos_token_id=2)
    folder, model = random_model(LlamaForCausalLM, config)
    engine = start(folder, model.float())  # in host memory: it goes to the GPU all the same
    assert engine._scheduler.model.device.type == "cuda"
    before, there = ask_at_once(engine, CASES), torch.cuda.memory_allocated()
    engine.offload()
    assert torch.cuda.memory_reserved() < 0.1 * there
    engine.onload()
    assert [answer.tokens for answer in ask_at_once(engine, CASES)] == [answer.tokens for answer in before]
