"""What the embedded engine holds, before a run starts (`slime_core.contracts.memory`). Called by `LocalEngine.memory`. Imports no
torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.memory import ALWAYS, Holding, MemoryUse, ModelShape, Part, Phase
from slime_core.training.memory import Dimensions, in_words

if TYPE_CHECKING:
    from slime_engine_local.arguments import LocalRunArguments

GENERATE: frozenset[Phase] = frozenset({"generate"})
HAND_OVER: frozenset[Phase] = frozenset({"hand over"})
SMALLEST, SPARE = 64, 8
"""Of `slime_engine_local.cache`: tokens of the smallest row, and rows that are made beyond those that are needed."""
PAGE, JOINING = 64, 4096
"""Tokens of a page (`slime_engine_local.pages`), and of the requests that join together on a GPU (`slime_engine_local.scheduler`)."""


def memory(args: LocalRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
    """What the engine holds while it generates the longest responses that the options allow, with as many requests at a time."""
    d = Dimensions.of(model)
    size = 2 if use.on_gpu and args.bf16 else use.weight_bytes
    of = f"{in_words(model.size)} weights × {size} bytes"
    embedding = size * d.hidden * d.vocabulary
    parts = [Part("engine's weights", size * model.size, of)]
    if not use.on_gpu:  # all but the embedding is packed for products, and nothing is kept while `slime train` trains
        when = GENERATE | HAND_OVER if use.takes_turns else ALWAYS
        packed = size * model.size - (0 if d.tied else embedding)
        kept = "" if when == ALWAYS else ", which train-async keeps while it trains"
        parts = [
            Part("engine's embedding", embedding, "not packed", when),
            Part("engine's weights", packed, f"{of}, packed{kept}", when),
        ]
    if use.own_process:
        buckets = 2.0 * args.update_weight_buffer_size
        parts.append(Part("weights on their way", buckets, "two buckets", HAND_OVER, "--update-weight-buffer-size"))
    response = getattr(args, "rollout_max_response_len", None)
    if response is None:
        return Holding(parts, unknown=["keys and values, as nothing limits how much is generated"])
    prompts = getattr(args, "over_sampling_batch_size", None) or args.rollout_batch_size
    running = min(args.local_max_running_requests, prompts * args.n_samples_per_prompt)
    own = response + 1 + (args.n_samples_per_prompt == 1) * (_prompt(args) or 0)
    held = min(running * _capacity(own), 2 * args.local_max_total_tokens)
    shared = 0
    if args.n_samples_per_prompt > 1 and _prompt(args):
        groups = -(-running // args.n_samples_per_prompt)
        shared = (groups + SPARE) * _capacity(_prompt(args) or 0)
    per_token = d.layers * (d.keys + d.values) * size
    if use.on_gpu and args.local_decoding != "rows":
        pages = -(-args.local_max_total_tokens // PAGE) + args.local_max_running_requests + 1
        tokens = pages * PAGE + 2 * max(JOINING, _capacity(own)) + shared
        places, when = f"{pages} pages of {PAGE} tokens, and requests that join", ALWAYS
    else:
        tokens = held + SPARE * _capacity(own) + shared
        places, when = f"{running} requests of {_capacity(own)} tokens and {SPARE} spare places", GENERATE
    parts.append(
        Part(
            "keys and values",
            tokens * per_token,
            f"{places}, {in_words(per_token)}B a token",
            GENERATE if args.offload else when,
            "--local-max-running-requests, --local-max-total-tokens",
        )
    )
    parts.append(
        Part(
            "logits of the engine",
            3.0 * running * d.vocabulary * 4,
            f"{running} requests × {d.vocabulary} × 4 bytes",
            GENERATE,
        )
    )
    return Holding(parts, unknown=[] if _prompt(args) else ["keys and values of prompts, whose length nothing limits"])


def _prompt(args: LocalRunArguments) -> int | None:
    """Tokens of the longest prompt that the options allow."""
    limit = getattr(args, "rollout_max_prompt_len", None)
    context, response = getattr(args, "rollout_max_context_len", None), getattr(args, "rollout_max_response_len", None)
    return limit or (context - response if context and response and context > response else None)


def _capacity(length: int) -> int:
    return max(SMALLEST, 1 << (max(1, length) - 1).bit_length())
