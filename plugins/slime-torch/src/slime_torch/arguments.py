"""The options of the torch backend alone; the optimizer's, the schedule's and LoRA's are shared by all backends
(`slime_core.arguments.groups.optimizer`, `slime_core.arguments.groups.lora`)."""

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


class TorchRunArguments(RunArguments, TorchArguments):
    """The run's options with those of this package: a class for type checkers, of which nobody makes an instance."""
