"""Builds megatron-core's model of a Hugging Face checkpoint: this rank's part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor, nn

from slime_core.errors import ArgumentError
from slime_megatron import te_layers, versions
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.layout import ParallelLayout
from slime_megatron.modules import (
    LatentRMSNorm,
    PackedCoreAttention,
    PostNormAdd,
    RMSNorm,
    ZeroCentredRMSNorm,
    sum_rotary_key_gradients,
)
from slime_megatron.names import Names, Rule
from slime_megatron.spec import ModelSpec

VALUE_HEAD = "value_head"
"""What a critic's head is called, in the model and in files."""

_NORMS = {"rms": RMSNorm, "zero_centred_rms": ZeroCentredRMSNorm}


class HiddenStates(GPTModel):  # type: ignore[misc]  # megatron-core has no types
    """megatron-core's model without its last step: the last pipeline stage gives the final hidden states, not logits.

    Attributes:
        trains_adapters: its weights are frozen, and adapters trained.
        freezes_weights: some of its weights are frozen.
    """

    trains_adapters = freezes_weights = False

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@dataclass
class BuiltModel:
    """This rank's part of a model.

    Attributes:
        module: megatron-core's model.
        spec: what the family made of the configuration.
        names: how its weights are called in files.
        layer_offset: layers of the stages before this one.
        vocab_size: tokens that the checkpoint knows, without the padding.
    """

    module: HiddenStates
    spec: ModelSpec
    names: Names
    layer_offset: int
    vocab_size: int
    _filled_with_zeros: bool = field(default=False, init=False)
    _real: int = field(default=0, init=False)

    def forward(
        self, row_ids: Tensor, bounds: Tensor, longest: int, model: nn.Module | None = None, real: int | None = None
    ) -> Tensor:
        """The hidden states of a packed row, or on other stages than the last what the next one wants.

        Args:
            row_ids: (1, N) token ids of this context-parallel rank.
            bounds: (S + 1,) int32, where the sequences begin in the whole row.
            longest: the length of the longest sequence.
            model: the wrapped module, where there is one.
            real: tokens in front that fill up nothing; None: all.
        """
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        if self._filled_with_zeros and real is not None:
            self._real = real
            packed.cu_seqlens_q_padded = packed.cu_seqlens_kv_padded = bounds
            packed.cu_seqlens_q = packed.cu_seqlens_kv = bounds.clamp(max=real)
        hidden: Tensor = (model or self.module)(row_ids, None, None, packed_seq_params=packed)
        return hidden

    def fill_up_with_zeros(self) -> None:
        """Let tokens that fill up a row be zeros: their embeddings, and with those what every layer makes of them, since
        attention gives zeros for them (`PackedCoreAttention`). What layers compute from other tokens never depends on them."""
        self._filled_with_zeros = True
        if not self.module.pre_process:
            return

        def hook(layer: nn.Module, given: Any, embedded: Tensor) -> Tensor:
            rank = parallel_state.get_tensor_model_parallel_rank() if self.module.config.sequence_parallel else 0
            kept = min(max(self._real - rank * len(embedded), 0), len(embedded))
            return torch.cat([embedded[:kept], torch.zeros_like(embedded[kept:])])

        self.module.embedding.register_forward_hook(hook)

    @property
    def sizes(self) -> dict[str, int]:
        """How many of what is filled up with zeros are real, by their names in plain words."""
        config = self.module.config
        heads = config.num_attention_heads - self.spec.zero_heads
        groups = heads * config.num_query_groups // config.num_attention_heads
        return {"tokens": self.vocab_size, "heads": heads, "heads of keys and values": groups}

    @property
    def head_weight(self) -> Tensor:
        """(V / tensor ranks, H): the output layer's, or the embedding's where they are tied. On the last stage."""
        tied = self.module.share_embeddings_and_output_weights
        weight: Tensor = self.module.shared_embedding_or_output_weight() if tied else self.module.output_layer.weight
        return weight


def build(
    spec: ModelSpec,
    vocab_size: int,
    layout: ParallelLayout,
    args: MegatronRunArguments,
    dtype: torch.dtype,
    low_precision: Mapping[str, Any] | None = None,
) -> BuiltModel:
    """This rank's part of the model, with random weights.

    Args:
        low_precision: fields of megatron-core's configuration that let Transformer Engine's layers compute in FP8.
    """
    if engine := te_layers.chosen(args):
        te_layers.require_expressible(spec, layout, args)
    versions.compile_nothing_on_cpus()
    config = _config(spec, layout, args, dtype, low_precision)
    module = HiddenStates(
        config=config,
        transformer_layer_spec=te_layers.block(config) if engine else _own_block(spec, config),
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        fp16_lm_cross_entropy=False,
        parallel_output=True,
        **spec.model,
    )
    offset = get_transformer_layer_offset(config)
    if spec.embedding_scale and module.pre_process:
        scale = spec.embedding_scale
        module.embedding.word_embeddings.register_forward_hook(lambda layer, given, out: out * out.new_tensor(scale))
    if not engine:
        _finish_own_layers(module, spec, offset)
    return BuiltModel(module, spec, Names(spec.rules), offset, vocab_size)


def _own_block(spec: ModelSpec, config: TransformerConfig) -> Any:
    """The layers of this pipeline stage, with norms and attention of this package."""
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    norm: Any = _NORMS[spec.norm]
    block.layer_norm = norm
    for layer in block.layer_specs:
        parts: Any = layer.submodules
        attention = parts.self_attention.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = norm
        attention.core_attention = PackedCoreAttention
        if spec.latent:
            versions.take_latent_layers_as_given()
            attention.kv_layernorm = LatentRMSNorm
            attention.q_layernorm = LatentRMSNorm if spec.config.get("q_lora_rank") else IdentityOp
        elif config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = norm
        if spec.post_norms:
            add = ModuleSpec(module=PostNormAdd, params={"config": config, "norm": norm})
            parts.self_attn_bda = parts.mlp_bda = add
    return block


def _finish_own_layers(module: HiddenStates, spec: ModelSpec, offset: int) -> None:
    """What the layers of `_own_block` need once they are there. `offset`: layers of the stages before."""
    if spec.latent:
        sum_rotary_key_gradients(module)
        versions.leave_values_as_they_are()
    for number, layer in enumerate(module.decoder.layers):
        core: Any = layer.self_attention.core_attention
        core.soft_cap = spec.attention_soft_cap
        core.window = spec.windows[number + offset] if spec.windows else None


def add_value_head(model: BuiltModel) -> nn.Linear | None:
    """Give the last stage a critic's head: a linear layer without bias that turns a hidden state into one number, in place of
    logits; 0 where the checkpoint has none. An output layer that is not tied to the embedding is frozen."""
    model.names.add(
        Rule(f"{VALUE_HEAD}.weight", (f"{VALUE_HEAD}.weight",), optional=True)
    )  # other stages gather it too
    if not model.module.post_process:
        return None
    config = model.module.config
    head = nn.Linear(config.hidden_size, 1, bias=False, dtype=config.params_dtype)
    nn.init.zeros_(head.weight)
    model.module.add_module(VALUE_HEAD, head)
    if not model.module.share_embeddings_and_output_weights:
        model.module.output_layer.requires_grad_(False)
    return head


def _check_stages(layers: int, stages: int, given: tuple[int | None, int | None]) -> None:
    """Refuse layers that do not go into the stages evenly, but for a first and a last one of given size.

    Raises:
        ArgumentError: they do not.
    """
    if stages == 1:
        return
    sizes = [size for size in given if size is not None]
    left, others = layers - sum(sizes), stages - len(sizes)
    if left < others or (left % others if others else left):
        said = f", of which the first and last stage are to have {' and '.join(map(str, sizes))}" if sizes else ""
        raise ArgumentError(
            f"The model has {layers} layers{said}, which --pipeline-model-parallel-size {stages} does not divide. Say how "
            "many the first or last stage has: --decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers."
        )


def _config(
    spec: ModelSpec,
    layout: ParallelLayout,
    args: MegatronRunArguments,
    dtype: torch.dtype,
    low_precision: Mapping[str, Any] | None = None,
) -> TransformerConfig:
    stages = (args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers)
    _check_stages(spec.config["num_layers"], layout.pipeline, stages)
    kind = MLATransformerConfig if spec.latent else TransformerConfig
    config = kind(
        **{"bias_activation_fusion": False, **spec.config, **te_layers.fields(spec, args), **(low_precision or {})},
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        sequence_parallel=layout.sequence,
        num_layers_in_first_pipeline_stage=stages[0],
        num_layers_in_last_pipeline_stage=stages[1],
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        deterministic_mode=args.deterministic_mode,
        variable_seq_lengths=True,  # packed rows of a pipeline differ in length
        moe_token_dispatcher_type="alltoall",  # the only one that works with them, for dense models too
        calculate_per_token_loss=True,  # gradients are sums: the loss is normalised by whoever computes it
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        deallocate_pipeline_outputs=False,  # saves one hidden state per micro-batch; compared in one schedule only
        recompute_granularity=args.recompute_granularity,
        recompute_method=args.recompute_method,
        recompute_num_layers=args.recompute_num_layers,
        recompute_modules=list(args.recompute_modules) if args.recompute_modules else None,
    )
    for name, value in spec.attributes.items():
        setattr(config, name, value)
    return config
