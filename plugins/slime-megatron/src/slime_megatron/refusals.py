"""What this backend cannot do, found in the options alone: refused in words, or told to have no effect. Pure; imports nothing
heavy, so that `slime check` can say it.

What depends on the device is refused where the optimizer is built, what depends on the model in `slime_megatron.model_flags`,
and what depends on the number of ranks in `slime_megatron.layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from slime_core.another_machine import is_for_another_machine
from slime_core.training.precision import refused_in_emulation, refused_with_adapters
from slime_megatron.te_probe import refusal

if TYPE_CHECKING:
    from slime_core.arguments.groups.lora import LoraArguments
    from slime_megatron.arguments import MegatronArguments, MegatronRunArguments

_TRANSFORMER_ENGINE = (
    "needs Transformer Engine's layers. Give --transformer-impl transformer_engine as well, or leave the option out"
)


def refused(args: MegatronArguments) -> list[str]:
    """One sentence for every option that asks for something this backend does not do."""
    return [
        *_transformer_engine(args),
        *_computation(args),
        *_optimizer(args),
        *_experts(args),
        *_recomputation(args),
        *_adapters(args, cast("LoraArguments", args)),
        *_low_precision(args),
    ]


def _transformer_engine(args: MegatronArguments) -> Iterator[str]:
    # On a cluster of somebody else's making this machine says nothing of those that train; they ask themselves.
    if not is_for_another_machine(args) and (why := refusal(args.transformer_impl)):
        yield why
    if args.transformer_impl == "transformer_engine":
        if args.attention_backend == "local":
            yield (
                "--attention-backend local switches all kernels of Transformer Engine off, and --transformer-impl "
                "transformer_engine has no others. Give auto, flash, fused or unfused."
            )
        return
    if args.rope_fusion:
        yield f"--rope-fusion {_TRANSFORMER_ENGINE}; --no-rope-fusion says so."
    if args.use_precision_aware_optimizer:
        yield (
            f"--use-precision-aware-optimizer {_TRANSFORMER_ENGINE}: moments and master weights are float32, as they are with "
            "the option unless other types are asked for; --optimizer-cpu-offload keeps the moments in host memory without it."
        )
    if args.recompute_granularity == "selective" and "layernorm" in (args.recompute_modules or ()):
        yield f"--recompute-modules layernorm {_TRANSFORMER_ENGINE}."


def _computation(args: MegatronArguments) -> Iterator[str]:
    if args.num_layers_per_virtual_pipeline_stage is not None:
        yield (
            "--num-layers-per-virtual-pipeline-stage: stages that are interleaved (virtual pipeline) need micro-batches of one "
            "length, and packed rows differ in length. Leave it out; --decoder-first-pipeline-num-layers and "
            "--decoder-last-pipeline-num-layers balance the stages."
        )
    if args.masked_softmax_fusion:
        yield (
            "--masked-softmax-fusion: attention is torch's scaled_dot_product_attention, which is fused itself. Leave the "
            "option out, or give --no-masked-softmax-fusion."
        )
    if args.gradient_accumulation_fusion:
        yield (
            "--gradient-accumulation-fusion needs APEX's CUDA extension, with which this backend has never been run. Leave the "
            "option out, or give --no-gradient-accumulation-fusion."
        )
    if not args.attention_softmax_in_fp32:
        yield "--no-attention-softmax-in-fp32: the softmax of attention is always computed in float32. Leave the option out."
    for name, dropout in (("attention", args.attention_dropout), ("hidden", args.hidden_dropout)):
        if dropout:
            yield f"--{name}-dropout is {dropout}: this backend trains without dropout. Give 0, or leave the option out."


def _optimizer(args: MegatronArguments) -> Iterator[str]:
    if args.overlap_param_gather:
        yield (
            "--overlap-param-gather: the new weights would arrive in the next forward pass, but checkpoints, exports and the "
            "inference engine read them right after a step. Leave the option out."
        )
    if not args.accumulate_allreduce_grads_in_fp32:
        yield "--no-accumulate-allreduce-grads-in-fp32: gradients are always added up in float32. Leave the option out."
    optimizer, offloaded = getattr(args, "optimizer", "adam"), getattr(args, "optimizer_cpu_offload", False)
    if args.use_precision_aware_optimizer and args.transformer_impl == "transformer_engine":
        if optimizer == "sgd" or offloaded or not args.use_distributed_optimizer:
            yield (
                "--use-precision-aware-optimizer is an Adam whose state is cut over ranks and stays on the GPU. Leave it out, or "
                "--optimizer sgd, --no-use-distributed-optimizer and --optimizer-cpu-offload."
            )
    elif optimizer == "sgd" and args.use_distributed_optimizer:
        yield "--optimizer sgd needs --no-use-distributed-optimizer: megatron-core cuts the state of Adam alone over ranks."


def _experts(args: MegatronArguments) -> Iterator[str]:
    if args.moe_token_dispatcher_type == "allgather":
        yield (
            "--moe-token-dispatcher-type allgather cannot take packed rows of different lengths. Give alltoall, or leave the "
            "option out."
        )
    if args.moe_router_load_balancing_type == "sinkhorn":
        yield (
            "--moe-router-load-balancing-type sinkhorn chooses other experts than the checkpoint was made with. Give none."
        )
    if args.moe_aux_loss_coeff:
        yield (
            f"--moe-aux-loss-coeff is {args.moe_aux_loss_coeff:g}: the auxiliary loss that balances experts is not trained "
            "here. Give 0, or leave the option out."
        )
    if args.moe_router_bias_update_rate:
        yield (
            f"--moe-router-bias-update-rate is {args.moe_router_bias_update_rate:g}: the bias that chooses experts would move "
            "in every step, and with it the log-probs of tokens that the engine sampled. Give 0, or leave the option out."
        )
    if args.moe_expert_capacity_factor is not None:
        yield "--moe-expert-capacity-factor: no token is dropped here, as none is in the engine. Leave the option out."
    if args.enable_mtp_training:
        yield (
            "--enable-mtp-training: layers for multi-token prediction are not trained here; an export copies them unchanged. "
            "Leave the option out."
        )
    if args.use_routing_replay and getattr(args, "disable_compute_advantages_and_returns", False):
        yield (
            "--use-routing-replay repeats the experts of the policy that sampled a rollout, and with "
            "--disable-compute-advantages-and-returns nothing was sampled. Leave it out."
        )


def _recomputation(args: MegatronArguments) -> Iterator[str]:
    if args.recompute_granularity == "full":
        if args.recompute_method is None or args.recompute_num_layers is None:
            yield (
                "--recompute-granularity full needs --recompute-method and --recompute-num-layers, for example uniform and 1: "
                "every layer is computed again."
            )
        if args.recompute_modules:
            yield "--recompute-modules goes with --recompute-granularity selective, and full computes whole layers again."
    if args.recompute_granularity == "selective":
        if args.recompute_method or args.recompute_num_layers:
            yield (
                "--recompute-method and --recompute-num-layers go with --recompute-granularity full; selective computes "
                "--recompute-modules of all layers again."
            )
        together = args.transformer_impl == "transformer_engine" and args.moe_grouped_gemm
        if "moe_act" in (args.recompute_modules or ()) and not together:
            yield (
                "--recompute-modules moe_act needs experts in one kernel: --moe-grouped-gemm, with --transformer-impl "
                "transformer_engine. Give them, or leave moe_act out."
            )


def _adapters(args: MegatronArguments, lora: LoraArguments) -> Iterator[str]:
    if not getattr(lora, "lora_rank", 0):  # conversions have no option of adapters
        return
    if args.transformer_impl == "transformer_engine":
        yield (
            "--lora-rank: adapters are made for megatron-core's own linear layers, not for those of Transformer Engine. Leave "
            "--transformer-impl out, or give local."
        )
    if lora.lora_dropout:
        yield (
            f"--lora-dropout is {lora.lora_dropout}: this backend trains without dropout, since ranks that share a layer would "
            "have to drop the same inputs. Give 0, or leave the option out; --train-backend torch has it."
        )


def _low_precision(args: MegatronArguments) -> Iterator[str]:
    run = cast("MegatronRunArguments", args)
    if not getattr(run, "fp8_format", None):  # conversions have no option of FP8
        return
    yield from refused_with_adapters(run)
    asked = f"--fp8-format {run.fp8_format}"
    if args.transformer_impl == "transformer_engine":
        yield from _hardware_s_low_precision(run, asked)
        return
    if not run.fp8_emulation:
        yield (
            f"{asked}: without Transformer Engine megatron-core ignores it in silence. Give --fp8-emulation, which rounds numbers as "
            "FP8 rounds them and multiplies in high precision, slower than no FP8; or --transformer-impl transformer_engine, on a "
            "GPU; or leave --fp8-format out."
        )
    if args.context_parallel_size > 1:
        yield (
            f"{asked} with --context-parallel-size {args.context_parallel_size}: the tokens of a row lie on several ranks, in another "
            "order, so blocks that run along tokens and scales of a whole row would be other ones than without it. Leave one "
            "of the two out."
        )
    yield from refused_in_emulation(run)


def _hardware_s_low_precision(args: MegatronRunArguments, asked: str) -> Iterator[str]:
    """What Transformer Engine's layers do not do as a precision recipe says."""
    if args.fp8_emulation:
        yield (
            f"{asked} with --transformer-impl transformer_engine: the layers of Transformer Engine compute in FP8 themselves. Leave "
            "--fp8-emulation out, or --transformer-impl."
        )
    if args.fp8_modules_to_not_convert:
        yield (
            "--fp8-modules-to-not-convert: with --transformer-impl transformer_engine all linear layers compute in FP8, or none of a "
            "layer (--first-last-layers-bf16), while engine and exports would leave these modules out. Leave the option out."
        )
    if args.first_last_layers_bf16 and args.fp8_recipe == "delayed":
        yield (
            "--first-last-layers-bf16 with --fp8-recipe delayed: Transformer Engine's delayed scaling takes all layers or none. Give "
            "another --fp8-recipe, or leave --first-last-layers-bf16 out."
        )
    if args.fp8_param_gather and not args.use_distributed_optimizer:
        yield "--fp8-param-gather needs --use-distributed-optimizer, whose weights it gathers. Give it, or leave one of the two out."
    if args.reuse_grad_buf_for_mxfp8_param_ag and not (args.fp8_param_gather and args.fp8_recipe == "mxfp8"):
        yield (
            "--reuse-grad-buf-for-mxfp8-param-ag is for weights that are gathered in MXFP8: give --fp8-param-gather and --fp8-recipe "
            "mxfp8 as well, or leave it out."
        )


def remarks(args: MegatronArguments) -> list[str]:
    """One sentence for every option that has no effect, or another one than its name promises, in this backend. Those whose
    effect depends on another option alone say so by their declaration, and `slime check` reports them itself."""
    found = []
    if args.sequence_parallel and args.tensor_model_parallel_size == 1:
        found.append("--sequence-parallel has no effect with --tensor-model-parallel-size 1.")
    if args.pipeline_model_parallel_size == 1:
        for flag, value in (
            ("--decoder-first-pipeline-num-layers", args.decoder_first_pipeline_num_layers),
            ("--decoder-last-pipeline-num-layers", args.decoder_last_pipeline_num_layers),
        ):
            if value is not None:
                found.append(f"{flag} has no effect with --pipeline-model-parallel-size 1.")
    if args.overlap_cpu_optimizer_d2h_h2d:
        found.append(
            "--overlap-cpu-optimizer-d2h-h2d has no effect: the optimizer's state goes to the GPU in one piece for each step, "
            "and back."
        )
    if not args.check_for_nan_in_loss_and_grad:
        found.append("--no-check-for-nan-in-loss-and-grad has no effect: NaN and Inf always stop a run.")
    if args.use_routing_replay and getattr(args, "num_steps_per_rollout", None) == 1:
        found.append(
            "--use-routing-replay has no effect with one optimizer step per rollout: the weights that choose experts are still "
            "those of the policy that sampled."
        )
    if args.moe_token_dispatcher_type == "flex":
        deepep = " and --moe-enable-deepep have" if args.moe_enable_deepep else " has"
        found.append(
            f"--moe-token-dispatcher-type flex{deepep} no effect: tokens get to their experts by all-to-all. No number changes."
        )
    elif args.moe_token_dispatcher_type and args.moe_enable_deepep:
        found.append("--moe-enable-deepep has no effect: tokens get to their experts by all-to-all. No number changes.")
    if args.transformer_impl == "local":
        if args.attention_backend != "auto":
            found.append(
                f"--attention-backend {args.attention_backend} has no effect: torch's scaled_dot_product_attention chooses "
                "its kernel itself."
            )
        if args.moe_grouped_gemm:
            found.append("--moe-grouped-gemm has no effect: experts are computed one after the other.")
        if args.moe_permute_fusion:
            found.append("--moe-permute-fusion has no effect: tokens are sorted by expert without a fused kernel.")
    return found
