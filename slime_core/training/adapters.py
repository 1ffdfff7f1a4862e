"""Which layers get a LoRA adapter (`--target-modules`). Called by the backends that train adapters."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from slime_core.errors import ArgumentError

ALL_LINEAR = "all-linear"


def target_layers(linear: AbstractSet[str], wanted: Sequence[str], model: str) -> set[str]:
    """The last parts of the names of the layers that get an adapter.

    Args:
        linear: those of all linear layers in the model's blocks.
        wanted: `--target-modules`.
        model: what the model is called in messages.

    Raises:
        ArgumentError: a wanted name is that of no linear layer; says which there are.
    """
    targets = set(linear) if ALL_LINEAR in wanted else set(wanted)
    if not targets or targets - linear:
        raise ArgumentError(
            f"--target-modules {' '.join(sorted(targets - linear)) or ALL_LINEAR} names no linear layer in the blocks "
            f"of {model}. It has: {', '.join(sorted(linear)) or 'none'}; {ALL_LINEAR} means all of them."
        )
    return targets
