"""Generate functions that make several samples of one, go on where they were stopped, and fail now and then."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

from slime_core.contracts.engine import Generation
from slime_core.sample import Sample, Status
from slime_core.trajectories import finished_segments

TOOL = [50, 51]
KINDS = ("turns", "parts", "copies", "single")
state = SimpleNamespace(seed=0, calls=Counter(), failures=True, kinds=KINDS)
"""`kinds`: those of this test's trajectories. `calls`: of the generate function in this rollout, by the index of the sample."""


def plan(index: int) -> tuple[str, int]:
    """How the trajectory of a sample is made, and of how many segments."""
    draw = random.Random(f"{state.seed} {index}")
    kind = draw.choice(state.kinds)
    return kind, 1 if kind == "single" else draw.randint(1, 4)


def fails(index: int) -> str | None:
    """What goes wrong in this rollout's first call for a sample: it raises, or the sample comes back as failed for good."""
    chance = random.Random(f"{state.seed} fails {index}").random() if state.failures else 1.0
    return "raises" if chance < 0.15 else "failed" if chance < 0.2 else None


async def agent(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample | list[Sample]:
    """Makes the trajectory that `plan` says; failures are those of `fails`."""
    state.calls[sample.index] += 1
    kind, count = plan(sample.index)
    made = await {"turns": turns, "parts": parts, "copies": copies, "single": copies}[kind](
        sample, sampling_params, engine, count
    )
    failure = fails(sample.index)
    if failure == "raises" and state.calls[sample.index] == 1:
        raise RuntimeError("once")
    if failure == "failed" and made[-1].status is Status.COMPLETED:
        made[-1].status = Status.FAILED
    return made[0] if kind == "single" else made


async def turns(sample: Sample, params: dict[str, Any], engine: Any, count: int) -> list[Sample]:
    """One after the other. The prompt of a turn is the last three tokens before it and a tool's answer; odd turns have another
    answer inside the response."""
    made = []
    for turn in range(sample.metadata.get("turn", 0), count):
        if turn % 2 and not sample.response_length:
            sample.tokens, sample.response_length = [*sample.tokens, *TOOL], len(TOOL)
            sample.loss_mask = [0] * len(TOOL)
            sample.rollout_log_probs, sample.weight_versions = [0.0] * len(TOOL), [0] * len(TOOL)
        sample.metadata["turn"] = turn
        sample = extended(sample, await engine.generate(sample.tokens, params))
        made.append(sample)
        if sample.status is Status.ABORTED:
            break
        sample = Sample(
            prompt="", tokens=[*sample.tokens[-3:], *TOOL], label=sample.label, metadata={**sample.metadata}
        )
    return made


async def parts(sample: Sample, params: dict[str, Any], engine: Any, count: int) -> list[Sample]:
    """At the same time, from one prompt."""
    prompt = sample.tokens[: len(sample.tokens) - sample.response_length]
    done = {one.metadata["part"] for one in finished_segments(sample)}

    async def part(number: int) -> Sample:
        one = copy.deepcopy(sample)
        if sample.metadata.get("part") != number:
            one = Sample(prompt=sample.prompt, tokens=list(prompt), label=sample.label, metadata={**sample.metadata})
            one.metadata["part"] = number
        return extended(one, await engine.generate(one.tokens, {**params, "seed": params["seed"] + number}))

    return list(await asyncio.gather(*(part(number) for number in range(count) if number not in done)))


async def copies(sample: Sample, params: dict[str, Any], engine: Any, count: int) -> list[Sample]:
    """One response, several times."""
    done = extended(sample, await engine.generate(sample.tokens, params))
    return [copy.deepcopy(done) for _ in range(count)]


def extended(sample: Sample, generation: Generation) -> Sample:
    """The sample with what was generated."""
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    return sample.changed(
        tokens=[*sample.tokens, *generation.tokens],
        response=f"{sample.response} {generation.text}",
        response_length=sample.response_length + len(generation.tokens),
        loss_mask=[*mask, *(1 for _ in generation.tokens)],
        rollout_log_probs=[*(sample.rollout_log_probs or []), *generation.log_probs],
        weight_versions=[*sample.weight_versions, *generation.weight_versions],
        status=Status.ABORTED if generation.finish_reason == "abort" else Status.COMPLETED,
    )


async def reward(args: Any, sample: Sample) -> float:
    """0, 1 or a half, by the sample's tokens; segments of one trajectory differ."""
    return (sum(sample.tokens) + sample.index) % 3 / 2


async def group_reward(args: Any, samples: list[Sample]) -> list[float]:
    """The same, for all samples of a group at once."""
    return [await reward(args, sample) for sample in samples]
