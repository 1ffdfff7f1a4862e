"""What a server of SGLang holds on each of its GPUs, before it starts (`slime_core.contracts.memory`). Called by
`SGLangEngine.memory`. Imports nothing heavy.

SGLang itself takes a share of the GPU for weights, keys and values when it starts (`--sglang-mem-fraction-static`), so that what is
left beside the weights are keys and values. Here they are what the run's longest requests need at least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.memory import ALWAYS, Holding, MemoryUse, ModelShape, Part, Phase
from slime_core.training.memory import Dimensions, in_words, product

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments

GENERATE: frozenset[Phase] = frozenset({"generate"})
HAND_OVER: frozenset[Phase] = frozenset({"hand over"})


def memory(args: SGLangRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
    """What a server holds on a GPU. One is served in bfloat16, quantised weights in one byte."""
    d, size = Dimensions.of(model), args.rollout_num_gpus_per_engine
    low = 1.0 if model.config.get("quantization_config") else 2.0
    matrices = sum(product(shape) for name, shape in model.parameters.items() if len(shape) > 1 and "layers" in name)
    weights = (low * matrices + 2 * (model.size - matrices)) / size
    kind = "1 byte in FP8" if low == 1 else "2 bytes"
    over = f" / {size} GPUs" if size > 1 else ""
    parts = [
        Part("engine's weights", weights, f"{in_words(model.size)} weights × {kind}{over}"),
        Part(
            "weights on their way",
            args.update_weight_buffer_size,
            "one bucket",
            HAND_OVER,
            "--update-weight-buffer-size",
        ),
    ]
    when = GENERATE if args.offload else ALWAYS
    share = getattr(args, "sglang_mem_fraction_static", None)
    if share and use.device:
        rest = max(0.0, float(share) * use.device - weights)
        parts.append(
            Part("keys and values", rest, f"the rest of {share:g} of the GPU", when, "--sglang-mem-fraction-static")
        )
        return Holding(parts)
    longest = getattr(args, "rollout_max_response_len", None)
    groups = min(size, max(1, int(model.config.get("num_key_value_heads") or 1)))
    per_token = 2 * d.layers * (d.latent if d.latent else (d.keys + d.values) / groups)
    if longest is not None:
        of = f"one response of {longest} tokens, {in_words(per_token)}B a token"
        parts.append(Part("keys and values", per_token * longest, of, when))
    told = (
        "give --gpu-memory"
        if share
        else "its own --sglang-mem-fraction-static decides, which is not given or cannot be read here"
    )
    return Holding(parts, unknown=[f"what SGLang's server takes of its GPU for more keys and values: {told}"])
