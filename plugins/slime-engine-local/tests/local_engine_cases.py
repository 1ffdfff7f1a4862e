"""Helpers of these tests: the shape of the tiny models, requests to an engine, and what plain transformers computes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from slime_core.contracts.engine import Generation
from slime_engine_local.engine import LocalEngine

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
}


def engine_args(folder: Path, max_running: int = 64, max_tokens: int = 65536, **more: Any) -> Any:
    """The options that an engine reads."""
    limits = {"local_max_running_requests": max_running, "local_max_total_tokens": max_tokens}
    limits |= {"image_min_pixels": None, "image_max_pixels": None}
    limits |= {"local_decoding": "auto", "bf16": False, "rollout_num_gpus": None}
    return SimpleNamespace(**{"hf_checkpoint": str(folder), "colocate": False, "offload": False, **limits, **more})


def weights_of(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The weights as a train backend hands them over: live tensors, tied ones once."""
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def ask(engine: LocalEngine, requests: Sequence[tuple[Sequence[int], dict[str, Any]]]) -> list[Generation]:
    """Answers to requests that are made together."""

    async def together() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(prompt, params) for prompt, params in requests))

    return asyncio.run(together())


@torch.no_grad()
def reference_log_probs(
    model: Any, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """The log-probs of `tokens`, from one full forward pass of transformers."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()


@torch.no_grad()
def reference_greedy(model: Any, prompt: Sequence[int], limit: int) -> list[int]:
    """The response of transformers' `generate`, one prompt at a time."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def endless_greedy(model: Any, prompt: list[int], limit: int) -> list[int]:
    """The likeliest tokens by full forward passes of transformers; nothing but the limit ends them."""
    tokens: list[int] = []
    for _ in range(limit):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].argmax()))
    return tokens


def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread makes the condition true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the test never got so far"
        time.sleep(0.001)


def all_there(engine: LocalEngine, requests: int) -> Callable[[], bool]:
    """A function that returns whether so many requests have reached the engine."""
    scheduler = engine._scheduler
    return lambda: len(scheduler._running) + len(scheduler._waiting) + len(scheduler._arrived) >= requests


@contextmanager
def held(engine: LocalEngine) -> Iterator[None]:
    """Block the engine's thread between two steps, so that it finds all at once what is asked meanwhile."""
    there, free = threading.Event(), threading.Event()

    def wait() -> None:
        there.set()
        free.wait()

    engine._scheduler.call(wait)
    assert there.wait(60)  # what comes before would be taken with this step, and what comes after with the next one
    try:
        yield
    finally:
        free.set()


def ask_at_once(engine: LocalEngine, requests: Sequence[tuple[Sequence[int], dict[str, Any]]]) -> list[Generation]:
    """Answers to requests none of which begins before all have arrived."""

    async def together() -> list[Generation]:
        with held(engine):
            tasks = [asyncio.create_task(engine.generate(prompt, params)) for prompt, params in requests]
            await asyncio.to_thread(until, all_there(engine, len(requests)))
        return await asyncio.gather(*tasks)

    return asyncio.run(together())


class Passes:
    """Counts what goes through an engine's model from now on.

    Args:
        on_pass: is called before each forward pass with its number, from 1, on the engine's thread.

    Attributes:
        sizes: the number of requests and chunks in each forward pass.
        tokens: the number of tokens in each.
        stored: the number of tokens in the cache after each.
    """

    def __init__(self, engine: LocalEngine, on_pass: Callable[[int], None] = lambda number: None) -> None:
        self.sizes: list[int] = []
        self.tokens: list[int] = []
        self.stored: list[int] = []
        scheduler = engine._scheduler
        model = scheduler.model
        original = model.next_logits

        def counted(tokens: list[int], step: Any) -> torch.Tensor:
            self.sizes.append(len(tokens) + len(step.chunks))
            self.tokens.append(len(tokens) + sum(len(chunk.tokens) for chunk in step.chunks))
            on_pass(len(self.sizes))
            logits = original(tokens, step)
            self.stored.append(len(step.cache) + self.tokens[-1])
            return logits

        model.next_logits = counted
