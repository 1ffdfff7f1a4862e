"""Optimizer and learning-rate schedule, with Megatron's meaning of the options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def build_optimizer(args: Any, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `--optimizer` names. Parameters with one dimension (norms, biases) are not decayed."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if args.optimizer == "sgd":
        spread = any(isinstance(p, DTensor) for p in trained)  # for which torch has no fused SGD
        return torch.optim.SGD(groups, lr=args.lr, momentum=args.sgd_momentum, fused=not spread)
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.lr, betas=betas, eps=args.adam_eps, fused=True)
