"""The optimizer with Megatron's meaning of the options, and the gradient that it is given. Called by the backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slime_core.arguments.groups.optimizer import OptimizerArguments
from slime_core.tensors.norm import squares_of
from slime_core.tensors.ranks import Ranks
from slime_torch.sharding import local


def build_optimizer(args: OptimizerArguments, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer that `--optimizer` names. Norms, some of which have a weight for every head, and parameters with one dimension
    (biases) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = {id(p) for m in model.modules() if type(m).__name__.endswith("Norm") for p in m.parameters(recurse=False)}
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in norms]
    others = [p for p in trained if p.ndim < 2 or id(p) in norms]
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if args.optimizer == "sgd":
        from torch.distributed.tensor import DTensor

        spread = any(isinstance(p, DTensor) for p in trained)  # for which torch has no fused SGD
        return torch.optim.SGD(groups, lr=args.lr, momentum=args.sgd_momentum, fused=not spread)
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=betas, eps=args.adam_eps, fused=True)
    if all(p.device.type == "cpu" for p in trained):
        _make_state(optimizer, trained)
    return optimizer


def _make_state(optimizer: torch.optim.AdamW, trained: Sequence[nn.Parameter]) -> None:
    """Give the optimizer the state that it would make in its first step. There it would lie between what that step frees, and every step
    would need more memory for its large tensors."""
    for parameter in trained:
        means = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **means}


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Set the optimizer's means and counts of steps to 0, in place: as in a new one."""
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, Tensor):
                value.zero_()


def keep_embedding_gradients_sparse(model: nn.Module) -> None:
    """Let a micro-batch's gradient by an embedding have the rows of its tokens, and not one of the whole vocabulary. Where the head's
    weight is the same, they are added to the head's gradient; else `gradients_of` fills up what is missing, once for a step."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq:
            module.sparse = True


def gradients_of(model: nn.Module) -> list[Tensor]:
    """This rank's parts of the gradients of all trained parameters; 0 for a parameter that nothing reached."""
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
            gradients.append(local(parameter.grad))
    return gradients


def gradient_norm(gradients: Sequence[Tensor], ranks: Ranks) -> float:
    """The norm of the whole gradient, over all ranks, which call this at the same time.

    Args:
        gradients: this rank's parts.
    """
    return norm_of(squares_of(gradients), ranks)


def norm_of(squares: Tensor, ranks: Ranks) -> float:
    """The same, from the sum of the squares of this rank's parts."""
    own = squares.to(ranks.device)
    return math.sqrt((own if ranks.size == 1 else ranks.sum(own)).item())


def clip(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Scale the gradient down to the norm `limit`, in place, if its norm is above that. A limit of 0 is none."""
    if limit and norm > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
