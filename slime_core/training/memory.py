"""How much memory training takes: sizes that train backends have in common. Called by their `memory` (`slime_core.contracts.memory`).

Numbers are those of one packed row of N tokens, the longest that the options allow, through decoder layers of attention and a gated MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from slime_core.contracts.memory import ModelShape
from slime_core.training.adapters import ALL_LINEAR
from slime_core.training.frozen import trained_names

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

VISION = frozenset({"visual", "vision_tower", "multi_modal_projector", "vision_model", "connector"})
"""What transformers calls the parts of a model through which images alone go."""


@dataclass(frozen=True)
class Dimensions:
    """Widths of a decoder layer, in numbers per token.

    Attributes:
        hidden: of the residual stream.
        queries, keys, values: of all heads.
        heads: of queries.
        mlp: of a dense MLP.
        experts: of all experts that a token goes through; 0 in a model without experts.
        chosen: experts that a token goes through, shared ones apart.
        dense: how many layers have no experts.
        layers, vocabulary: how many.
        tied: head and embedding are one weight.
        head_norms: queries and keys are normalised.
        latent: of the latents of queries, keys and values; 0 without them.
    """

    hidden: int
    queries: int
    keys: int
    values: int
    heads: int
    mlp: int
    experts: int
    chosen: int
    dense: int
    layers: int
    vocabulary: int
    tied: bool
    head_norms: bool
    latent: int

    @classmethod
    def of(cls, model: ModelShape) -> Dimensions:
        """The dimensions of a model, by the names that transformers gives them."""
        config: Any = model.config
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        groups = config.get("num_key_value_heads") or heads
        head = config.get("head_dim") or hidden // heads
        query, value, latent = head, head, 0
        if config.get("kv_lora_rank"):
            query, value = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
            latent, groups = (
                (config.get("q_lora_rank") or 0) + config["kv_lora_rank"] + config["qk_rope_head_dim"],
                heads,
            )
        layers = config["num_hidden_layers"]
        routed = config.get("n_routed_experts") or config.get("num_experts") or config.get("num_local_experts") or 0
        chosen = config.get("num_experts_per_tok") or 0 if routed else 0
        width = config.get("moe_intermediate_size") or config.get("intermediate_size") or 0
        kinds = config.get("mlp_layer_types")
        first = config.get("first_k_dense_replace") or len(config.get("mlp_only_layers") or ())
        dense = sum(kind == "dense" for kind in kinds) if kinds else min(first, layers)
        return cls(
            hidden=hidden,
            queries=heads * query,
            keys=groups * query,
            values=groups * value,
            heads=heads,
            mlp=config.get("intermediate_size") or 4 * hidden,
            experts=(chosen + (config.get("n_shared_experts") or 0)) * width,
            chosen=chosen,
            dense=dense if routed else layers,
            layers=layers,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
            head_norms=any(".q_norm." in name for name in model.parameters),
            latent=latent,
        )


def longest_row(args: RunArguments) -> int | None:
    """The tokens of the longest micro-batch on a rank that the options allow; None where they set no limit.

    A sample that is longer than the budget is a micro-batch of its own.
    """
    sample = longest_sample(args)
    context = getattr(args, "context_parallel_size", 1) if args.train_backend == "megatron" else 1
    part = None if sample is None else -(-sample // context)
    if args.use_dynamic_batch_size and args.max_tokens_per_gpu is not None:
        return max(args.max_tokens_per_gpu, part or 0)
    return None if part is None else args.micro_batch_size * part


def longest_sample(args: RunArguments) -> int | None:
    """The tokens of the longest sample that the options allow; None where they set no limit."""
    context = getattr(args, "rollout_max_context_len", None)
    if context:
        return int(context)
    prompt, response = getattr(args, "rollout_max_prompt_len", None), getattr(args, "rollout_max_response_len", None)
    return int(prompt) + int(response) if prompt and response else None


def one_micro_batch(args: RunArguments, ranks: int) -> bool:
    """Whether the micro-batches of a step are one for each data-parallel rank, so that nothing is added to gradients."""
    return not args.use_dynamic_batch_size and args.micro_batch_size * ranks >= (args.global_batch_size or 1)


def logits(dimensions: Dimensions, rows: int, args: RunArguments, *, ranks: int = 1) -> float:
    """Bytes of the logits that exist at one time, and of the head's gradient before it is added to the others.

    Args:
        rows: tokens that are trained.
        ranks: that share the vocabulary.
    """
    size = args.log_probs_chunk_size
    chunk = (rows if size == -1 else min(size, rows)) * dimensions.vocabulary / ranks * 4
    return chunk * (1.5 if args.bf16 else 1.0)


def adapter_size(args: RunArguments, model: ModelShape) -> int:
    """The number of weights that adapters of `--lora-rank` add; 0 without them."""
    return sum(args.lora_rank * sum(shape) for _, shape in adapted(args, model)) if args.lora_rank else 0


def trained_size(args: RunArguments, model: ModelShape) -> int:
    """The number of weights that are trained: of adapters, or of all parameters that no option freezes."""
    if args.lora_rank:
        return adapter_size(args, model)
    names = trained_names(args, model.parameters.keys(), "the model", vision_parameters(model))
    return sum(product(model.parameters[name]) for name in names)


def vision_parameters(model: ModelShape) -> list[str]:
    """The names of the parameters through which images alone go."""
    return [name for name in model.parameters if any(part in VISION for part in name.split("."))]


def adapted(args: RunArguments, model: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The matrices of the blocks that get an adapter, with their shapes."""
    for name, shape in model.parameters.items():
        path = name.split(".")
        in_a_block = path[-1] == "weight" and len(shape) == 2 and any(part.isdigit() for part in path)
        if in_a_block and (ALL_LINEAR in args.target_modules or path[-2] in args.target_modules):
            yield name, shape


def in_words(number: float) -> str:
    """4022468096 → "4.02 B"."""
    for unit, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.0f}"


def product(shape: tuple[int, ...]) -> int:
    """The numbers of a tensor."""
    return prod(shape)
