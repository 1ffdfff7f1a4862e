r"""Rewards that see only what the response's last `\boxed{…}` holds: `boxed_f1` is `f1` of that, and so on. A response
without a closed box is scored as an empty one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slime_core.sample import Sample
from slime_rewards import exact_match, f1, final_answer, gpqa, remote
from slime_rewards.boxes import last_box


async def boxed_exact_match(args: Any, sample: Sample) -> float:
    """`exact_match` of the box."""
    return await exact_match.exact_match(args, _boxed(sample))


async def boxed_f1(args: Any, sample: Sample) -> float:
    """`f1` of the box."""
    return await f1.f1(args, _boxed(sample))


async def boxed_final_answer(args: Any, sample: Sample) -> float:
    """`final_answer` of the box."""
    return await final_answer.final_answer(args, _boxed(sample))


async def boxed_gpqa(args: Any, sample: Sample) -> float:
    """`gpqa` of the box."""
    return await gpqa.gpqa(args, _boxed(sample))


def boxed_remote_rm(args: Any, sample: Sample) -> float | dict[str, Any]:
    """`remote_rm` of the box."""
    return remote.remote_rm(args, _boxed(sample))


def _boxed(sample: Sample) -> Sample:
    box = last_box(sample.response)
    return replace(sample, response=(box.content if box else None) or "")


EXAMPLES = {"boxed_gpqa": [Sample(index=0, response=r"So it is \boxed{B}.", label="B"), Sample(index=1, label="B")]}
"""For `slime plugins check`: labels that are letters."""
