"""What becomes of groups whose sampling was stopped: how they go back to the data source, and go on. Pure.

A sample that has been continued carries `metadata["start_rollout_id"]`, the rollout in which its response was begun,
and `metadata["times_continued"]`.
"""

from __future__ import annotations

from dataclasses import replace

from slime_core.sample import Group, Sample, Status

FINISHED = (Status.COMPLETED, Status.TRUNCATED)

_START = "start_rollout_id"
_CONTINUED = "times_continued"


def times_continued(sample: Sample) -> int:
    """In how many earlier rollouts some of the response was generated and the sample aborted."""
    return int(sample.metadata.get(_CONTINUED, 0))


def fresh(sample: Sample) -> Sample:
    """The prompt alone, as if nothing had been generated."""
    return Sample(
        group_index=sample.group_index,
        index=sample.index,
        prompt=sample.prompt,
        tokens=sample.tokens[: len(sample.tokens) - sample.response_length],
        label=sample.label,
        metadata={key: value for key, value in sample.metadata.items() if key not in (_START, _CONTINUED)},
    )


def begun(sample: Sample, rollout_id: int) -> Sample:
    """The sample as the next rollout shall find it: finished, or to be continued.

    What an aborted sample has (tokens, log-probs, weight versions) stays. One without a response is fresh.
    """
    if sample.status not in FINISHED and not sample.response_length:
        return fresh(sample)
    metadata = {_START: rollout_id, **sample.metadata}
    if sample.status is Status.ABORTED:
        metadata[_CONTINUED] = times_continued(sample) + 1
    return replace(sample, metadata=metadata)


def put_back(given: Group, results: list[list[Sample]], rollout_id: int, keep: bool, mask_earlier: bool) -> Group:
    """A group whose sampling was stopped, as it goes back to the data source.

    Args:
        given: as it came from there.
        results: what has become of each of its samples by now; [] stands for nothing.
        keep: whether what was generated is kept (`--partial-rollout`).
        mask_earlier: whether the next rollout trains none of it. A group that is finished would then train nothing at
            all, so it starts afresh.
    """
    is_finished = all(results) and all(s.status in FINISHED for made in results for s in made)
    if not keep or (mask_earlier and is_finished):
        return [fresh(sample) for sample in given]
    pairs = zip(given, results, strict=True)
    return [begun(sample, rollout_id) for original, made in pairs for sample in made or [fresh(original)]]


def mask_first(sample: Sample, count: int) -> Sample:
    """The sample with its first `count` response tokens not trained."""
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    return replace(sample, loss_mask=[0] * count + list(mask[count:]))
