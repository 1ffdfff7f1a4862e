"""The embedded engine on this device: its log-probs are the trainer's, it repeats itself, and it comes back from host memory as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu.job import Findings
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import engine, random_model, random_prompts, trainer
from slime_core.contracts.engine import Generation
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch

ANSWER = 24


def log_probs(machine: Machine, found: Findings, name: str, dtype: torch.dtype) -> None:
    """Of every generated token, as engine and trainer compute it from the same weights.

    In float32 only the order of sums differs. In bfloat16 both are off from the exact log-prob by about 3 % of what a logit varies
    by (see `check_training.bf16_against_fp32`), which is below 1 with random weights.
    """
    bf16 = dtype == torch.bfloat16
    model = random_model(machine, name)
    serves = engine(machine, name, running=16, tokens=8192)
    try:
        serves.update_weights(in_dtype(model, dtype), 1)
        prompts = [[*ids[: 5 + number]] for number, ids in enumerate(random_prompts(machine, name, 6, 40))]
        prompts += [[*prompts[-1]], [*prompts[-1]]]  # which share their keys and values
        answers, again = generate(serves, prompts, ANSWER), generate(serves, prompts, ANSWER)
        found.holds("the same requests get the same answers", [a.tokens for a in answers] == [a.tokens for a in again])
        alone = [generate(serves, [prompt], ANSWER, first=number)[0] for number, prompt in enumerate(prompts)]
        found.note(**_against(answers, alone))
        serves.offload()
        serves.onload()
        back = generate(serves, prompts, ANSWER)
        found.holds("and after offloading", [a.log_probs for a in back] == [a.log_probs for a in answers])
    finally:
        serves.close()
    samples = [
        Sample(tokens=[*prompt, *a.tokens], response_length=len(a.tokens), loss_mask=[1] * len(a.tokens))
        for prompt, a in zip(prompts, answers, strict=True)
    ]
    backend = trainer(machine, name, ["--bf16" if bf16 else "--no-bf16"], model=model)
    theirs = backend.log_probs(make_train_batch(samples, mean="token", max_tokens=256))
    apart = [abs(x - y) for a, own in zip(answers, theirs, strict=True) for x, y in zip(a.log_probs, own, strict=True)]
    found.within("log-probs apart, mean", sum(apart) / len(apart), 0.03 if bf16 else 1e-4)
    found.within("log-probs apart, largest", max(apart), 0.3 if bf16 else 1e-3)
    found.note(tokens=len(apart))


def _against(together: list[Generation], alone: list[Generation]) -> dict[str, Any]:
    """How far answers that were generated together are from those of the same requests alone."""
    pairs = [
        (x, y)
        for a, b in zip(together, alone, strict=True)
        if a.tokens == b.tokens
        for x, y in zip(a.log_probs, b.log_probs, strict=True)
    ]
    return {
        "answers alone with the same tokens": sum(a.tokens == b.tokens for a, b in zip(together, alone, strict=True)),
        "answers": len(together),
        "log-probs alone, largest distance": max((abs(x - y) for x, y in pairs), default=0.0),
        "log-probs alone with the same bits": sum(x == y for x, y in pairs) / max(1, len(pairs)),
    }


def in_dtype(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model for an engine, tied ones once."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().to(dtype)


def generate(serves: Any, prompts: list[list[int]], tokens: int, first: int = 0) -> list[Generation]:
    """Answers of so many tokens to all prompts, which are asked together.

    Args:
        first: the seed of the first one; that of the next is the next number.
    """
    given = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}

    async def ask() -> list[Generation]:
        asked = [serves.generate(prompt, {**given, "seed": number}) for number, prompt in enumerate(prompts, first)]
        return list(await asyncio.gather(*asked))

    return asyncio.run(ask())
