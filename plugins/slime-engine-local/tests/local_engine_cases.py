"""The shape of the tiny models, asking an engine, and what plain transformers says about the same tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from slime_core.engine import Generation
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


def weights_of(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What a train backend hands over: live tensors, tied ones once."""
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def ask(engine: LocalEngine, requests: Sequence[tuple[Sequence[int], dict[str, Any]]]) -> list[Generation]:
    """All requests at once."""

    async def together() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(prompt, params) for prompt, params in requests))

    return asyncio.run(together())


@torch.no_grad()
def reference_log_probs(
    model: Any, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """Log-probs of `tokens` from one full forward pass of transformers."""
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
