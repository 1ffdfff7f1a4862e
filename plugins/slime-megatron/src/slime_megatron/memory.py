"""What a rank of the Megatron backend holds, before a run starts (`slime_core.contracts.memory`). Called by `MegatronBackend.memory`.
Imports no megatron-core.

It is that of the rank that holds most. Each stage of the pipeline is counted: its weights, gradients in float32, the optimizer's state,
and the activations of all micro-batches that are under way in it, which are most in the first stage.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_core.contracts.memory import ALWAYS, Holding, MemoryUse, ModelShape, Part, Phase
from slime_core.errors import ArgumentError
from slime_core.training.frozen import trained_names
from slime_core.training.memory import (
    Dimensions,
    adapted,
    in_words,
    logits,
    longest_row,
    product,
    vision_parameters,
)

if TYPE_CHECKING:
    from slime_megatron.arguments import MegatronRunArguments

STEP: frozenset[Phase] = frozenset({"step"})
TRAIN: frozenset[Phase] = frozenset({"train"})
WHOLE = ("q_a_proj", "kv_a_proj", "mlp.gate.weight", "e_score_correction_bias")
"""Parts of the names of matrices that every tensor-parallel rank has whole: into latents, and routers."""


@dataclass(frozen=True)
class Cut:
    """How a model is cut over ranks: see `slime_megatron.layout.ParallelLayout`.

    Attributes:
        data, expert_data: ranks that hold the same weights, and the same experts.
    """

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int
    sequence: int
    data: int
    expert_data: int

    @classmethod
    def of(cls, args: MegatronRunArguments, ranks: int) -> Cut:
        """The cut that the arguments ask for.

        Raises:
            ArgumentError: it does not divide the ranks.
        """
        tensor, pipeline, context = (
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            args.context_parallel_size,
        )
        if ranks % (tensor * pipeline * context):
            raise ArgumentError(
                f"--tensor-model-parallel-size {tensor} × --pipeline-model-parallel-size {pipeline} × --context-parallel-size "
                f"{context} does not divide the {ranks} training ranks (--actor-num-nodes × --actor-num-gpus-per-node)."
            )
        expert = args.expert_model_parallel_size
        expert_tensor = args.expert_tensor_parallel_size or (tensor if expert == 1 else 1)
        experts = max(1, ranks // (pipeline * expert * expert_tensor))
        sequence = tensor if args.sequence_parallel else 1
        # Ranks that share sequences hold the same weights, so that they share the optimizer's state too.
        return cls(tensor, pipeline, expert, expert_tensor, sequence, ranks // (tensor * pipeline), experts)

    def layers(self, args: MegatronRunArguments, count: int) -> list[int]:
        """How many layers each stage has."""
        first, last = args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers
        if self.pipeline == 1:
            return [count]
        middle = self.pipeline - (first is not None) - (last is not None)
        rest = count - (first or 0) - (last or 0)
        stages = [-(-rest // max(1, middle))] * middle
        return [*([first] if first else []), *stages, *([last] if last else [])]


def memory(args: MegatronRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
    """What the rank holds that holds most."""
    cut, d, rows = Cut.of(args, use.ranks), Dimensions.of(model), longest_row(args)
    number = 2 if args.bf16 else 4
    starts, begin = [], 0
    for count in cut.layers(args, d.layers):
        starts.append(range(begin, begin + count))
        begin += count
    stages = [_stage(args, model, d, cut, use, layers, rows) for layers in starts]
    parts = max(stages, key=lambda found: sum(part.size for part in found))
    unknown = []
    if rows is None and use.role != "reference":
        unknown.append(
            "activations, as nothing limits the length of a micro-batch: give --use-dynamic-batch-size with --max-tokens-per-gpu"
        )
    return Holding(parts, weight_bytes=number, unknown=unknown)


def _stage(
    args: MegatronRunArguments,
    model: ModelShape,
    d: Dimensions,
    cut: Cut,
    use: MemoryUse,
    layers: range,
    rows: int | None,
) -> list[Part]:
    """What a rank of a pipeline stage holds.

    Args:
        layers: the numbers of its layers.
    """
    first, last = layers.start == 0, layers.stop == d.layers
    dense, experts = _weights(args, model, d, cut, layers, model.parameters)
    number = 2 if args.bf16 else 4
    stage = f" in {cut.tensor} × {cut.pipeline} parts" if cut.tensor * cut.pipeline > 1 else ""
    expert = f", experts in {cut.expert * cut.expert_tensor * cut.pipeline}" if experts else ""
    parts = [
        Part("weights", number * (dense + experts), f"{in_words(model.size)} weights × {number} bytes{stage}{expert}")
    ]
    if args.fp8_format and args.transformer_impl == "transformer_engine" and not args.fp8_param_gather:
        parts.append(Part("weights in FP8", 2 * (dense + experts), "as they are multiplied, both ways", TRAIN))
    if use.role == "reference":
        return parts
    if not args.lora_rank:
        names = trained_names(args, model.parameters.keys(), "the model", vision_parameters(model))
        trained, own_experts = _weights(args, model, d, cut, layers, names)
    else:
        added = sum(args.lora_rank * sum(shape) for _, shape in adapted(args, model)) / d.layers * len(layers)
        parts.append(Part("adapters", number * added, f"{in_words(added)} weights × {number} bytes"))
        trained, own_experts = added, 0
    data, expert_data = (cut.data, cut.expert_data) if args.use_distributed_optimizer else (1, 1)
    master = 4 * args.bf16
    moments = 8 if args.optimizer == "adam" else 4 * bool(args.sgd_momentum)
    spread = trained / data + own_experts / expert_data
    over = f" / {data} ranks" if data > 1 else ""
    count = f"{in_words(trained + own_experts)} weights of this rank"
    parts.append(
        Part("gradients", 4 * (trained + own_experts), f"{count} × 4 bytes", ALWAYS, "--tensor-model-parallel-size")
    )
    if master:
        parts.append(Part("master weights", master * spread, f"{count} × 4 bytes{over}"))
    when = STEP if args.optimizer_cpu_offload else ALWAYS
    parts.append(
        Part("optimizer state", moments * spread, f"{count} × {moments} bytes{over}", when, "--optimizer-cpu-offload")
    )
    if rows is None:
        return parts
    under_way = cut.pipeline - (layers.start * cut.pipeline) // d.layers if cut.pipeline > 1 else 1
    parts.append(_activations(args, d, cut, layers, rows, under_way, first or last))
    if last and use.role == "actor":
        size = logits(d, rows, args, ranks=cut.tensor)
        tokens = rows if args.log_probs_chunk_size == -1 else min(rows, args.log_probs_chunk_size)
        over = f" / {cut.tensor} ranks" if cut.tensor > 1 else ""
        if not args.lora_rank:
            size += d.vocabulary * d.hidden * number / cut.tensor
        of = f"{tokens} tokens × {d.vocabulary} × 4 bytes{over}" + (
            "" if args.lora_rank else ", and the head's gradient"
        )
        parts.append(Part("logits", size, of, TRAIN, "--log-probs-chunk-size"))
    return parts


def _weights(
    args: MegatronRunArguments, model: ModelShape, d: Dimensions, cut: Cut, layers: range, names: Container[str]
) -> tuple[float, float]:
    """The weights of one rank of a stage: all but experts, and those of experts.

    Args:
        names: of the parameters that count.
    """
    dense = experts = 0.0
    multiple = args.make_vocab_size_divisible_by * cut.tensor
    padded = -(-d.vocabulary // multiple) * multiple
    for name, shape in model.parameters.items():
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if name not in names or (number is not None and number not in layers):
            continue
        size = product(shape)
        if number is None:
            embedding = "embed" in name
            here = (layers.start == 0 if embedding else layers.stop == d.layers) or (
                embedding and d.tied and layers.stop == d.layers  # the last stage has a copy
            )
            if here:
                dense += padded * d.hidden / cut.tensor if len(shape) == 2 else size
        elif ".experts." in name and "shared" not in name:
            experts += size / (cut.expert * cut.expert_tensor)
        elif len(shape) < 2 or any(part in name for part in WHOLE):
            dense += size
        else:
            dense += size / cut.tensor
    return dense, experts


def _activations(
    args: MegatronRunArguments, d: Dimensions, cut: Cut, layers: range, rows: int, under_way: int, ends: bool
) -> Part:
    """What a stage keeps for the backward pass.

    Args:
        under_way: micro-batches whose backward pass is still to come, while another goes forward.
        ends: the stage has the embedding or the head.
    """
    number = 2 if args.bf16 else 4
    sparse = sum(layer >= d.dense for layer in layers) if d.experts else 0
    one_dense, one_sparse = (_of_a_layer(args, d, cut, number, experts) for experts in (False, True))
    whole = (len(layers) - sparse) * one_dense + sparse * one_sparse
    unit = max(one_dense if sparse < len(layers) else 0, one_sparse if sparse else 0)
    how, less = f"{len(layers)} layers", "--recompute-granularity full, --max-tokens-per-gpu"
    again = 0.0
    if args.recompute_granularity == "full" and args.recompute_num_layers:
        count, kept = min(args.recompute_num_layers, len(layers)), number * d.hidden / cut.sequence
        if args.recompute_method == "uniform":
            whole, again = kept * -(-len(layers) // count), unit * count
        else:
            whole = whole * (len(layers) - count) / len(layers) + kept * count
            again = unit
        how, less = f"{len(layers)} layers, computed again", "--max-tokens-per-gpu"
    last = 3 * number * d.hidden / cut.sequence if ends else 0
    times = f" of {under_way} micro-batches" if under_way > 1 else " of a micro-batch"
    return Part("activations", rows * (whole * under_way + again + last), f"{rows} tokens{times}, {how}", TRAIN, less)


def _of_a_layer(args: MegatronRunArguments, d: Dimensions, cut: Cut, number: int, experts: bool) -> float:
    """Bytes that a layer keeps of a token for the backward pass: two norms their inputs and outputs, attention queries, keys, values
    and its output, the MLP gate, projection, activation and product."""
    again = set(args.recompute_modules or ["core_attn"]) if args.recompute_granularity == "selective" else set()
    attention = (3 * d.queries + d.keys + d.values) / cut.tensor + 2 * d.latent
    if d.head_norms:
        attention += (d.queries + d.keys) / cut.tensor
    if "mla_up_proj" in again and d.latent:
        attention -= (d.queries + d.keys + d.values) / cut.tensor
    norms = 4 * d.hidden / cut.sequence
    if not experts:
        mlp = 0.0 if "mlp" in again else 4 * d.mlp / cut.tensor
        return number * (norms + attention + mlp)
    # Tokens come from all ranks of their experts, and on average as many as go there.
    read = 2 * d.chosen * d.hidden / (cut.sequence if cut.expert_tensor == 1 else 1)
    computed = 4 * d.experts / cut.tensor
    mlp = 0.0 if "moe" in again else read + (computed * 0.25 if "moe_act" in again else computed)
    return number * (norms + attention + mlp)
