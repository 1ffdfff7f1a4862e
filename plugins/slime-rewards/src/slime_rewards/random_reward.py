"""The reward `random`: a control. What a run gains with it, it did not gain from its reward."""

from __future__ import annotations

from hashlib import blake2b

from slime_core.arguments import RunArguments
from slime_core.sample import Sample


async def random(args: RunArguments, sample: Sample) -> float:
    """Return 1.0 or 0.0 with equal chance, whatever the response: a function of `--rollout-seed` and the sample's number, so
    that a run can be repeated."""
    return float(blake2b(f"{args.rollout_seed}:{sample.index}".encode()).digest()[0] & 1)
