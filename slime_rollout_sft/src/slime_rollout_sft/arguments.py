"""Options of the SFT rollout."""

from __future__ import annotations

from typing import Literal

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option


class SftArguments(ArgumentGroup):
    """Supervised fine-tuning."""

    loss_mask_type: str = option("auto", "Which tokens are trained: the name of a loss-mask generator.")
    over_long_sample: Literal["error", "skip", "truncate"] = option(
        "error",
        "What to do with a conversation of more tokens than --rollout-max-context-len: stop, take the next row "
        "instead, or cut its end off. What was skipped or cut is counted in the metrics.",
        when="rollout_max_context_len",
    )
    no_trainable_token: Literal["error", "skip"] = option(
        "error",
        "What to do with a conversation in which no token is trained: stop, or take the next row instead. "
        "What was skipped is counted in the metrics.",
    )

    dropped_text: Literal["error", "skip", "train"] = option(
        "error",
        "What to do with a conversation when the chat template leaves out text that was to be trained, such as tool calls "
        "that it does not know: stop, take the next row instead, or train what is left. It is counted in the metrics.",
    )

    num_workers: int = option(
        0,
        "Processes that tokenise and mask conversations, for GPUs that one core cannot keep busy, at most one for each prompt of a rollout; "
        "0: the rollout worker does so itself.",
        affects_result=False,
        ge=0,
        le=1024,
    )


class SftRunArguments(RunArguments, SftArguments):
    """The run's options with those of this package, for type checkers."""
