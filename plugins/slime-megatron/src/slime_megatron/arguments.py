"""The options of the Megatron backend, under Megatron's names and with their meaning: how a model is cut over ranks, and how
it is computed. Those that describe the model are in `slime_megatron.model_flags`; the optimizer's and the schedule's are
shared by all backends (`slime_core.arguments.groups.optimizer`).

What the options cannot do is said by `slime_megatron.refusals`: when a run is planned and again when the model is built.
"""

from __future__ import annotations

from typing import Literal, cast

from pydantic import model_validator

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option
from slime_megatron.model_flags import MegatronModelArguments

RecomputeModule = Literal["core_attn", "mlp", "moe", "shared_experts", "mla_up_proj", "layernorm", "moe_act"]


class MegatronLayoutArguments(ArgumentGroup):
    """Megatron backend: parallel layout and recomputation"""

    of_layout = True

    tensor_model_parallel_size: int = option(1, "Ranks that share every layer.", ge=1, affects_result=False)
    pipeline_model_parallel_size: int = option(
        1, "Ranks that have some of the layers each.", ge=1, affects_result=False
    )
    context_parallel_size: int = option(1, "Ranks that share every sequence.", ge=1, affects_result=False)
    expert_model_parallel_size: int = option(1, "Ranks that have some of the experts each.", ge=1, affects_result=False)
    expert_tensor_parallel_size: int | None = option(
        None,
        "Ranks that share every expert. Default: 1 where experts are cut over ranks, else --tensor-model-parallel-size.",
        ge=1,
        affects_result=False,
    )
    sequence_parallel: bool = option(
        False,
        "Cut what lies between tensor-parallel layers along the sequence; needs --tensor-model-parallel-size above 1.",
        affects_result=False,
    )
    decoder_first_pipeline_num_layers: int | None = option(
        None,
        "Layers of the first pipeline stage, where the stages are not to have equally many.",
        ge=1,
        affects_result=False,
    )
    decoder_last_pipeline_num_layers: int | None = option(
        None,
        "Layers of the last pipeline stage, where the stages are not to have equally many.",
        ge=1,
        affects_result=False,
    )
    num_layers_per_virtual_pipeline_stage: int | None = option(
        None,
        "Refused: interleaved pipeline stages compute something wrong on micro-batches of different lengths.",
        ge=1,
        affects_result=False,
    )
    recompute_granularity: Literal["full", "selective"] | None = option(
        None,
        "Compute activations again in the backward pass: whole layers, or --recompute-modules. Less memory, slower.",
        affects_result=False,
    )
    recompute_method: Literal["uniform", "block"] | None = option(
        None,
        "Which layers --recompute-granularity full computes again: all, in units, or the first of each stage.",
        when="recompute_granularity",
        affects_result=False,
    )
    recompute_num_layers: int | None = option(
        None,
        "How many layers form a unit, or are computed again, for --recompute-method.",
        ge=1,
        when="recompute_granularity",
        affects_result=False,
    )
    recompute_modules: list[RecomputeModule] | None = option(
        None,
        "Parts of a layer that --recompute-granularity selective computes again. Default: core_attn.",
        when="recompute_granularity",
        affects_result=False,
    )
    make_vocab_size_divisible_by: int = option(
        128,
        "The embedding gets rows of zeros until it has a multiple of this times --tensor-model-parallel-size. They are never "
        "exported.",
        ge=1,
        affects_result=False,
    )


class MegatronComputeArguments(ArgumentGroup):
    """Megatron backend: how it computes"""

    use_distributed_optimizer: bool = option(
        True, "Cut the optimizer's state over the data-parallel ranks.", affects_result=False
    )
    overlap_grad_reduce: bool = option(
        False, "Add up gradients over data-parallel ranks while the backward pass goes on.", affects_result=False
    )
    overlap_param_gather: bool = option(
        False,
        "Refused: weights that are read right after a step, by an engine or an export, would be the old ones.",
        affects_result=False,
    )
    accumulate_allreduce_grads_in_fp32: bool = option(
        True, "Add up gradients in float32. It is always done.", affects_result=False
    )
    overlap_cpu_optimizer_d2h_h2d: bool = option(
        False,
        "Move the optimizer's state while it is computed with. Has no effect: it moves in one piece.",
        when="optimizer_cpu_offload",
        affects_result=False,
    )
    use_precision_aware_optimizer: bool = option(
        False,
        "Let Transformer Engine's Adam hold the master weights; needs --transformer-impl transformer_engine.",
        affects_result=False,
    )
    check_for_nan_in_loss_and_grad: bool = option(
        True, "Stop at NaN and Inf in loss or gradient. It is always done.", affects_result=False
    )
    attention_dropout: float = option(0.0, "Only 0: models are trained without dropout.", ge=0, lt=1)
    hidden_dropout: float = option(0.0, "Only 0: models are trained without dropout.", ge=0, lt=1)
    attention_softmax_in_fp32: bool = option(
        True, "Compute the softmax of attention in float32. It is always done.", affects_result=False
    )
    attention_backend: Literal["auto", "flash", "fused", "unfused", "local"] = option(
        "auto",
        "Transformer Engine's kernels for attention. With other layers torch's scaled_dot_product_attention chooses.",
        when="transformer_impl",
        affects_result=False,
    )
    transformer_impl: Literal["local", "transformer_engine"] | None = option(
        None,
        "Whose layers compute: those of this package and of megatron-core (local), or Transformer Engine's. Default: local.",
        affects_result=False,
    )
    rope_fusion: bool = option(
        False,
        "Compute rotary embeddings in one kernel; needs --transformer-impl transformer_engine.",
        affects_result=False,
    )
    masked_softmax_fusion: bool = option(
        False, "Refused: attention has no softmax of its own that a kernel could be fused with.", affects_result=False
    )
    gradient_accumulation_fusion: bool = option(
        False,
        "Refused: adding gradients up inside of matrix products needs APEX's CUDA extension.",
        affects_result=False,
    )
    moe_token_dispatcher_type: Literal["alltoall", "allgather", "flex"] | None = option(
        None,
        "How tokens get to the ranks of their experts: always by all-to-all, in place of which flex changes no number.",
        affects_result=False,
    )
    moe_enable_deepep: bool = option(
        False,
        "Exchange tokens by DeepEP's kernels. Has no effect: all-to-all is used.",
        when="moe_token_dispatcher_type",
        affects_result=False,
    )
    moe_grouped_gemm: bool = option(
        False,
        "Let Transformer Engine compute the experts of a rank in one kernel. Other layers compute one after the other.",
        when="transformer_impl",
        affects_result=False,
    )
    moe_permute_fusion: bool = option(
        False,
        "Let Transformer Engine sort tokens by expert in one kernel. With other layers it takes several.",
        when="transformer_impl",
        affects_result=False,
    )
    use_routing_replay: bool = option(
        False,
        "In all optimizer steps of a rollout, tokens go to the experts that the model chose for them before the first.",
    )
    custom_model_provider_path: str | None = option(
        None,
        "Import path of a family of your own; see slime_megatron.spec.Family. Default: by the checkpoint's model_type.",
    )

    @model_validator(mode="after")
    def _refuse_what_megatron_cannot_do(self) -> MegatronComputeArguments:
        from slime_megatron.refusals import refused

        chosen = isinstance(self, RunArguments) and self.train_backend == "megatron"
        if chosen and (found := refused(cast("MegatronArguments", self))):
            raise ValueError("\n".join(found))
        return self


class MegatronArguments(MegatronLayoutArguments, MegatronComputeArguments, MegatronModelArguments):
    """All options of this package, for type checkers."""


class MegatronRunArguments(RunArguments, MegatronArguments):
    """The run's options with those of this package, for type checkers."""
