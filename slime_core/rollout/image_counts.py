"""How many images a rollout shows, as metrics. Called for every rollout by `RolloutResult.facts`."""

from __future__ import annotations

from collections.abc import Sequence

from slime_core.arguments import RunArguments
from slime_core.data.vision import processor_of
from slime_core.sample import Sample
from slime_core.token_arrays import token_ids


def image_counts(args: RunArguments, samples: Sequence[Sample]) -> dict[str, float]:
    """Return how many images some samples show, and how many of their tokens stand for images, as the metrics `images` and
    `image_tokens`; nothing of samples of text alone."""
    images = sum(len(sample.images) for sample in samples)
    if not images:
        return {}
    processor = processor_of(args)
    if processor is None:
        return {}
    tokens = sum(int((token_ids(sample) == processor.token).sum()) for sample in samples)
    return {"images": float(images), "image_tokens": float(tokens)}
