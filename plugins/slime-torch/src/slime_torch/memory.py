"""What the torch backend holds, before a run starts (`slime_core.contracts.memory`). Called by `TorchBackend.memory`; compared with
what a process really takes by `python -m benchmarks.memory`. Imports no torch.

Numbers are kept in float32; with --bf16 what linear layers keep for the backward pass is bfloat16, their weights among it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.memory import ALWAYS, Holding, MemoryUse, ModelShape, Part, Phase
from slime_core.training.memory import (
    Dimensions,
    adapter_size,
    in_words,
    logits,
    longest_row,
    one_micro_batch,
    product,
    trained_size,
    vision_parameters,
)
from slime_torch.arguments import FUSED, fuses

if TYPE_CHECKING:
    from slime_torch.arguments import TorchRunArguments

STEP: frozenset[Phase] = frozenset({"step"})
TRAIN: frozenset[Phase] = frozenset({"train"})
MOMENTS = {"adam": 8, "sgd": 4}


def memory(args: TorchRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
    """What a rank holds."""
    own = 1 / use.ranks
    added = 0 if use.role == "reference" else adapter_size(args, model)
    parts = [
        Part("weights", 4 * (model.size + added) * own, f"{in_words(model.size)} weights × 4 bytes{_over(use.ranks)}")
    ]
    rows = longest_row(args)
    unknown = []
    if rows is None:
        unknown.append(
            "activations, as nothing limits the length of a micro-batch: give --use-dynamic-batch-size with --max-tokens-per-gpu, or "
            "--rollout-max-context-len"
        )
    if vision_parameters(model):
        unknown.append("what the vision tower computes of the images of a micro-batch")
    whole = _whole_for_a_while(args, model, use) if use.ranks > 1 else []
    if use.role == "reference":
        return Holding([*parts, *whole], unknown=unknown)
    trained = trained_size(args, model)
    kept_whole = use.ranks > 1 and not args.fsdp_reshard_after_forward
    let_go = use.takes_turns and use.role == "actor"
    parts += _optimised(args, trained, own, kept_whole, one_micro_batch(args, use.ranks), let_go)
    if rows is not None:
        parts += _activations(args, model, rows, use)
    return Holding([*parts, *whole], unknown=unknown)


def _optimised(
    args: TorchRunArguments, trained: int, own: float, kept_whole: bool, alone: bool, let_go: bool
) -> list[Part]:
    """Gradients and the optimizer's state of so many weights.

    Args:
        own: this rank's share of them.
        alone: no micro-batch adds to the gradients of an earlier one, so that they come while activations go.
        let_go: gradients are not kept when the weights are handed over, which they are after every step.
    """
    gradients = STEP | TRAIN if let_go else ALWAYS
    moments = MOMENTS[args.optimizer] if args.optimizer == "adam" or args.sgd_momentum else 0
    when = STEP if args.optimizer_cpu_offload else ALWAYS
    count = f"{in_words(trained)} trained weights"
    over = _over(round(1 / own))
    lora = "" if args.lora_rank else "--lora-rank"
    return [
        Part(
            "gradients",
            4 * trained * (1 if kept_whole else own),
            f"{count} × 4 bytes{'' if kept_whole else over}",
            gradients - TRAIN if alone else gradients,
            lora,
        ),
        Part(
            "optimizer state",
            moments * trained * own,
            f"{count} × {moments} bytes{over}",
            when,
            "--optimizer-cpu-offload",
        ),
    ]


def _activations(args: TorchRunArguments, model: ModelShape, rows: int, use: MemoryUse) -> list[Part]:
    d = Dimensions.of(model)
    fused = _is_fused(args, model, use)
    dense, sparse = (
        _of_a_fused_layer(d, mlp, bool(args.fp8_format))
        if fused
        else _of_a_layer(d, mlp, args.bf16, use.on_gpu, _kept_of_an_mlp(args, model, use))
        for mlp in (d.mlp, 0)
    )
    sparse += _of_experts(d, args, use)
    per_token = d.dense * dense + (d.layers - d.dense) * sparse
    how = f"{d.layers} layers"
    if args.gradient_checkpointing:
        per_token = 4 * d.hidden * d.layers + max(dense, sparse if d.layers > d.dense else 0)
        how += ", of which one is computed again at a time"
    last = 4 * d.hidden + (2 if args.bf16 else 4) * d.hidden  # before the last norm, and what the head reads
    parts = [
        Part(
            "activations",
            rows * (per_token + last),
            f"{rows} tokens of a micro-batch, {how}",
            TRAIN,
            "--max-tokens-per-gpu" if args.gradient_checkpointing else "--gradient-checkpointing, --max-tokens-per-gpu",
        )
    ]
    if casts := _casts(args, model, use, fused):
        parts.append(Part("weights in bfloat16", casts, "for the backward pass", TRAIN, "--gradient-checkpointing"))
    if use.role == "actor":
        chunk = rows if args.log_probs_chunk_size == -1 else min(rows, args.log_probs_chunk_size)
        head = d.vocabulary * d.hidden
        size = logits(d, rows, args)
        if fused:
            # The head rounded, and its gradient, which is added where there is one already; and the larger of two moments: logits in
            # bfloat16 beside the hidden states, or the backward pass of a layer with all that the last one keeps.
            size = 2 * chunk * d.vocabulary + 4 * rows * d.hidden
            inner = max(d.mlp * bool(d.dense), d.experts)
            size = max(size, rows * (10 * d.hidden + 12 * inner + 4 * d.chosen * d.hidden))
            size += 2 * head + 4 * head * one_micro_batch(args, use.ranks)
        elif not args.lora_rank:  # the gradient of the head, until that of a tied embedding is added
            size += head * (8 if args.bf16 else 4)
        parts.append(
            Part(
                "logits",
                size,
                f"{chunk} tokens × {d.vocabulary} × {2 if fused else 4} bytes"
                + ("" if args.lora_rank else ", and the head's gradient"),
                TRAIN,
                "--log-probs-chunk-size",
            )
        )
    return parts


def _casts(args: TorchRunArguments, model: ModelShape, use: MemoryUse, fused: bool) -> int:
    """Bytes of the weights in bfloat16 that live from the forward pass to the backward pass. Over several ranks fused layers, and experts
    on a GPU, round theirs again for the backward pass."""
    if args.gradient_checkpointing or not args.bf16:
        return 0
    fp8, alone = bool(args.fp8_format), use.ranks == 1
    if fused and not (fp8 or alone):
        return 0
    return 2 * sum(_matrices(model, experts=fp8 or (use.on_gpu and alone)))


def _kept_of_an_mlp(args: TorchRunArguments, model: ModelShape, use: MemoryUse) -> int:
    """How many tensors of its inner size a gated MLP keeps: `slime_torch.gated_layers` saves one, and another one in float32."""
    if use.on_gpu or model.config.get("hidden_act") not in ("silu", "swish"):
        return 4
    return 3 if args.bf16 else 2


def _of_experts(d: Dimensions, args: TorchRunArguments, use: MemoryUse) -> float:
    """Bytes that the experts of a layer keep of a token for the backward pass.

    On a GPU (`slime_torch.experts`) what each of them reads, its gate and up, the gate after its activation, the product of both, and
    that by its weight. transformers' keep one tensor of the inner size less, and besides what each gives; in float32, autocast or not.
    """
    read = d.chosen * d.hidden
    if use.on_gpu and not args.fp8_format:
        return (2 if args.bf16 else 4) * (5 * d.experts + read)
    return (2 if args.bf16 and args.fp8_format else 4) * (4 * d.experts + 2 * read)


def _of_a_layer(d: Dimensions, mlp: int, bf16: bool, on_gpu: bool, keeps: int) -> float:
    """Bytes that a layer keeps of a token for the backward pass.

    In float32 two norms keep their inputs and what others than linear layers of a CPU read of their outputs, which those have made again
    (`slime_core.tensors.made_again`); attention queries, keys, values, its output and that in one piece; the MLP the gate before and
    after its activation, the other projection and their product; on a CPU two of them
    (`slime_torch.gated_layers`). In bfloat16 each linear layer keeps an input of its own.

    Args:
        mlp: its inner size; 0: the layer has experts, which are not counted.
        keeps: how many tensors of this size the MLP keeps.
    """
    norms = d.queries + d.keys if d.head_norms else 0
    attention = 2 * d.queries + d.keys + 2 * d.values if d.latent else 3 * d.queries + d.keys + d.values
    if bf16:
        return 18 * d.hidden + 2 * (attention + keeps * mlp) + 6 * norms + 4 * d.heads + 2 * d.latent
    read = 4 if on_gpu else 2 if mlp else 3
    return 4 * (read * d.hidden + attention + keeps * mlp + norms + d.heads + 2 * d.latent)


def _is_fused(args: TorchRunArguments, model: ModelShape, use: MemoryUse) -> bool:
    """Whether `slime_torch.fused_layers` computes the layers."""
    changed = args.fp8_emulation or args.lora_rank
    return fuses(args, use.on_gpu) and not changed and model.config.get("model_type") in FUSED


def _of_a_fused_layer(d: Dimensions, mlp: int, fp8: bool) -> float:
    """Bytes that a layer with a gated MLP keeps of a token: in float32 what two norms read; in bfloat16 what they give, queries, keys
    and values before they are turned, queries and keys after it, what attention gives, gate and up, and their product. In FP8 what
    linear layers read is quantised instead, for each of them.

    Args:
        mlp: its inner size; 0: the layer has experts, which are not counted.
    """
    attention = 2 * (3 * d.queries + 2 * d.keys + d.values) + 4 * d.heads
    if fp8:
        return 13 * d.hidden + attention + d.queries + 5 * mlp
    return 12 * d.hidden + attention + 6 * mlp


def _whole_for_a_while(args: TorchRunArguments, model: ModelShape, use: MemoryUse) -> list[Part]:
    """Weights that a rank has whole while it computes with them, of which it otherwise has a part."""
    layers: dict[str, int] = {}
    outside = 0
    for name, shape in model.parameters.items():
        number = next((part for part in name.split(".") if part.isdigit()), None)
        if number is None:
            outside += product(shape)
        else:
            layers[number] = layers.get(number, 0) + product(shape)
    if not args.fsdp_reshard_after_forward:
        size, of = 4.0 * model.size, "all layers, during a step"
    else:  # two layers, since the next one travels meanwhile, and the gradients of one
        size, of = (
            4.0 * (3 * max(layers.values(), default=0) + 2 * outside),
            "two layers, embedding and head, and their gradients",
        )
    return [Part("weights and gradients made whole", size, of, TRAIN)]


def _matrices(model: ModelShape, experts: bool) -> list[int]:
    """Sizes of the matrices of linear layers in the blocks, and of experts."""
    return [
        product(shape)
        for name, shape in model.parameters.items()
        if (len(shape) == 2 or (experts and len(shape) > 2)) and any(p.isdigit() for p in name.split("."))
    ]


def _over(ranks: int) -> str:
    return f" / {ranks} ranks" if ranks > 1 else ""
