"""What the Megatron backend sees of a run before it starts: options without effect, the checkpoints, and whether the family of
the model is mapped. Named by the plugin (`slime_core.contracts.checking`). Imports no megatron-core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core.contracts.checking import Checking
from slime_core.tensors.quantised_weights import in_high_precision
from slime_core.training.checkpoint_check import check_checkpoints
from slime_core.training.schedule import check_schedule
from slime_megatron import refusals
from slime_megatron.configuration import read_spec

if TYPE_CHECKING:
    from slime_megatron.arguments import MegatronRunArguments


def check(args: MegatronRunArguments, checking: Checking) -> None:
    """Say what would end the run when the model is built, and what has no effect."""
    for remark in refusals.remarks(args):
        checking.remark(remark)
    check_schedule(args, checking)
    config = check_checkpoints(checking)
    if config is not None and not args.debug_rollout_only:
        with checking.noting():
            read_spec(
                in_high_precision(config),
                f"--hf-checkpoint {args.hf_checkpoint}",
                args,
                args.tensor_model_parallel_size,
            )
