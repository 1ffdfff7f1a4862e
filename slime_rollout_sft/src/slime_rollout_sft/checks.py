"""What the SFT rollout sees of a run before it starts: conversations, evaluation sets, what `--eval-generate` needs.

Named by the plugin as the check of the rollout function (`slime_core.contracts.checking`).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from slime_core.contracts.checking import Checking
from slime_core.data.tokenizer import template_variables
from slime_core.rollout.checks import check_early_stopping, first_evaluated
from slime_rollout_sft.conversations import Conversations, Policy, with_variables

if TYPE_CHECKING:
    from slime_rollout_sft.arguments import SftRunArguments


def check(args: SftRunArguments, checking: Checking) -> None:
    """Say what would end the run at its first rows or in its first evaluation."""
    rollouts = checking.components.rollouts
    if (
        args.eval_generate
        and args.eval_prompt_data
        and rollouts.engine is None
        and "rollout_engine" not in checking.set_aside
    ):
        checking.error(
            f"--eval-generate {args.eval_generate} needs an inference engine: add --rollout-engine (and leave out "
            "--debug-train-only)."
        )
    scores = args.eval_generate and "reward" in rollouts.further
    check_early_stopping(
        checking,
        measured=("loss", "reward") if scores else ("loss",),
        why="only --eval-generate with a reward measures one",
    )
    if checking.tokenizer is None or "loss_mask" not in rollouts.further or args.load_debug_rollout_data:
        return
    loss_mask = None
    with checking.noting():
        loss_mask = with_variables(rollouts.further["loss_mask"], template_variables(checking.tokenizer, args))
    if loss_mask is None:
        return
    conversations = Conversations(Policy.of(args), loss_mask)
    for sample in (*checking.samples, *first_evaluated(checking)):
        with checking.noting():
            conversations.complete(copy.deepcopy(sample))
    if left_out := conversations.left_out():
        checking.remark(f"Of the first rows of all files, some are left out or cut: {left_out}.")
