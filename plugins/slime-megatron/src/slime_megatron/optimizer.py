"""What reduces gradients over ranks, and the optimizer: megatron-core's, from the options that all backends share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, clip_grads, get_megatron_optimizer
from torch import Tensor, nn

from slime_core.tensors.norm import squares_of
from slime_megatron import te_layers
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.model import HiddenStates

HOST = torch.device("cpu")


def wrap(module: HiddenStates, args: MegatronRunArguments, bucket_size: int | None = None) -> nn.Module:
    """The module in what adds up its gradients, in float32, over data- and context-parallel ranks.

    Args:
        bucket_size: parameters whose gradients travel together under `--overlap-grad-reduce`. Default: megatron-core's.
    """
    config: Any = module.config
    config.finalize_model_grads_func = finalize_model_grads
    reducing = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=args.overlap_grad_reduce,
        bucket_size=bucket_size,
        use_distributed_optimizer=args.use_distributed_optimizer,
        **te_layers.gathering(args),
    )
    wrapped: nn.Module = DistributedDataParallel(config, reducing, module)
    if args.overlap_grad_reduce:
        config.no_sync_func = wrapped.no_sync  # gradients travel in the backward pass of the last micro-batch alone
    return wrapped


def build(wrapped: nn.Module, args: MegatronRunArguments, dtype: torch.dtype) -> Any:
    """The optimizer of `--optimizer`. Biases and weights with one dimension are never decayed."""
    config = OptimizerConfig(
        optimizer="sgd" if args.optimizer == "sgd" else "adam",
        lr=args.lr,
        weight_decay=args.weight_decay,
        adam_beta1=args.adam_beta1,
        adam_beta2=args.adam_beta2,
        adam_eps=args.adam_eps,
        sgd_momentum=args.sgd_momentum,
        clip_grad=args.clip_grad,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_distributed_optimizer=args.use_distributed_optimizer,
        use_precision_aware_optimizer=args.use_precision_aware_optimizer,
        **te_layers.optimizing(args),
    )
    if not torch.cuda.is_available():
        clip_grads.l2_norm_impl = _norm
    optimizer = get_megatron_optimizer(config, [wrapped])
    _compute_in_one_pass(optimizer)
    for part in parts_of(optimizer):
        if part.init_state_fn is None:  # of SGD, whose state megatron-core could then not load
            part.init_state_fn = _make_momenta
    wrapped_config: Any = wrapped.config
    wrapped_config.grad_scale_func = optimizer.scale_loss
    return optimizer


def _make_momenta(optimizer: torch.optim.Optimizer, config: Any = None) -> None:
    """Give SGD the state that it has after a step, as zeros, for a checkpoint to be loaded into."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def _norm(chunk_size: int, overflow: Tensor, lists: list[list[Tensor]], *_: Any) -> tuple[Tensor, None]:
    """The norm of all tensors, in the place of megatron-core's, which is torch's; see `squares_of`."""
    return squares_of(tensor for tensors in lists for tensor in tensors).sqrt().float()[None], None


def parts_of(optimizer: Any) -> list[Any]:
    """The optimizers of which a chained one is made: of experts, and of all else."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _compute_in_one_pass(optimizer: Any) -> None:
    """Let torch's Adam, which megatron-core takes without Transformer Engine, read and write its state once in a step."""
    for part in parts_of(optimizer):
        if isinstance(part.optimizer, torch.optim.Adam):
            for group in part.optimizer.param_groups:
                group["fused"] = True


def let_go(wrapped: Any) -> None:
    """Let model and optimizer be freed when nothing else holds them. They hold each other through graphs of gradients, which
    Python's garbage collector does not see: those of `wrap`, and what is left of the last micro-batch in layers of experts.

    Args:
        wrapped: what `wrap` made, or a module alone.
    """
    wrapped.config.grad_scale_func = None
    getattr(wrapped, "grad_accs", []).clear()
    for module in wrapped.modules():
        kept = vars(module.token_dispatcher) if hasattr(module, "token_dispatcher") else {}
        for name in [name for name, value in kept.items() if isinstance(value, Tensor)]:
            kept[name] = None


def forget_steps(optimizer: Any) -> None:
    """Set the optimizer's means and counts of steps to 0, in place: as in a new one. Copies of the weights, which Transformer
    Engine's Adam has among its state, stay."""
    for inner in (part.optimizer for part in parts_of(optimizer)):
        for group in inner.param_groups if inner is not None else ():
            if "step" in group:
                group["step"] = 0
        for values in inner.state.values() if inner is not None else ():
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                if isinstance(values.get(key), Tensor):
                    values[key].zero_()


@contextmanager
def on_device(optimizer: Any, offloaded: bool) -> Iterator[None]:
    """Have the optimizer's state where its parameters are inside of this context, and in host memory afterwards; nothing
    happens unless it is offloaded.

    megatron-core's own way to offload computes on the CPU, but a state that it wrote cannot be read again without Transformer
    Engine.
    """
    if not offloaded:
        yield
        return
    move_state(optimizer, None)
    try:
        yield
    finally:
        move_state(optimizer, HOST)


def move_state(optimizer: Any, device: torch.device | None) -> None:
    """Move every tensor of the optimizer's state, its values unchanged.

    Args:
        device: where to; None: to the device of the parameter that the tensor belongs to.
    """
    inner = (part.optimizer for part in parts_of(optimizer))
    for parameter, values in ((p, v) for own in inner if own is not None for p, v in own.state.items()):
        target = parameter.device if device is None else device
        for key, value in values.items():
            if isinstance(value, Tensor) and key != "step":  # a number that torch wants where it is
                values[key] = value.to(target)
