"""The options of the torch backend alone; the optimizer's and the schedule's are shared by all backends
(`slime_core.arguments.groups.optimizer`)."""

from __future__ import annotations

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option


class TorchArguments(ArgumentGroup):
    """Torch backend"""

    gradient_checkpointing: bool = option(
        False, "Keep only every layer's input for the backward pass and compute the rest again: less memory, slower."
    )
    fsdp_reshard_after_forward: bool = option(
        True,
        "Between several training ranks: have a layer's weights whole only while the layer is computed. With "
        "--no-fsdp-reshard-after-forward each rank holds all weights and gradients during an optimizer step, and they "
        "travel once in the step and not with every micro-batch: faster, for more memory.",
        affects_result=False,
    )
    lora_rank: int = option(0, "Rank of LoRA adapters, which are then all that is trained. 0: train all weights.", ge=0)
    lora_alpha: float = option(16.0, "An adapter's output is scaled by --lora-alpha / --lora-rank.", gt=0)
    lora_dropout: float = option(0.0, "Share of an adapter's inputs that is dropped in training.", ge=0, lt=1)
    target_modules: list[str] = option(
        ["all-linear"], "Linear layers with an adapter, such as q_proj; all-linear: every one in the model's blocks."
    )


class TorchRunArguments(RunArguments, TorchArguments):
    """The run's options with those of this package: a class for type checkers, of which nobody makes an instance."""
