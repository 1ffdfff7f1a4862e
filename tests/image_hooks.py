"""Hook functions of a user's own project, for runs whose prompts have images."""

from __future__ import annotations

import hashlib

from slime_core.sample import Sample
from slime_core.testing import EchoEngine


class BlindEngine(EchoEngine):
    """An engine that takes no images."""


async def sees_images(args, sample: Sample) -> float:
    """A reward from images and response; where the row says so, there must be as many images."""
    assert len(sample.images) == sample.metadata["images"], sample.name
    assert all(image.startswith(b"\x89PNG") for image in sample.images)
    seen = hashlib.blake2b(b"".join(sample.images) + bytes(str(sample.tokens[-sample.response_length :]), "ascii"))
    return seen.digest()[0] / 255


async def in_two_turns(args, sample: Sample, sampling_params, engine) -> Sample:
    """Asks twice: for its own tokens, and for a text without any image, as a judge would be asked."""
    assert len(sample.images) == sample.metadata["images"]
    first = await engine.generate(sample.tokens, {**sampling_params, "max_new_tokens": 3})
    if first.finish_reason == "abort":
        return sample.changed(status=Sample.Status.ABORTED)
    judge = await engine.generate([65, 66, 67], {**sampling_params, "max_new_tokens": 1})
    tokens = [*sample.tokens, *first.tokens, 65]
    second = await engine.generate(tokens, {**sampling_params, "max_new_tokens": 3}, images=sample.images)
    made = [*first.tokens, 65, *second.tokens]
    return sample.changed(
        tokens=[*sample.tokens, *made],
        response_length=len(made),
        loss_mask=[1] * len(first.tokens) + [0] + [1] * len(second.tokens),
        rollout_log_probs=[*first.log_probs, 0.0, *second.log_probs],
        response=f"{first.text}{second.text}{len(judge.tokens)}",
        status=Sample.Status.COMPLETED,
    )
