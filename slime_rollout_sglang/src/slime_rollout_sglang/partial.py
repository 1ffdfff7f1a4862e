"""What becomes of groups that were not finished when sampling stopped: how they go back to the data source, and how the
next rollout finds them. Pure functions.

A group goes back with as many samples as it had, one for each trajectory. What has been generated of a trajectory
(`segments_of`) is the sample itself, with its response, or, where that cannot say it all because a generate function made
several samples of one or changed the prompt, a note in the metadata of the prompt's sample. The next rollout calls the
generate function once for each trajectory that is not finished, with the segment at which it was stopped
(`to_continue`), and puts what comes back in the place of that segment (`joined`).

The metadata of a sample that goes back with a response has `start_rollout_id`, the rollout in which the response was
begun, and, if it is to be continued, `times_continued`, how often that has happened. Where the turn began that was cut, stands
under slime's own key.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from slime_core.sample import RESERVED, Group, Sample, Status, notes_of
from slime_core.token_arrays import kept, num_tokens, prompt_ids

FINISHED = (Status.COMPLETED, Status.TRUNCATED)
"""The states of a sample whose response is not continued."""

_START = "start_rollout_id"
_CONTINUED = "times_continued"
_TURN = "turn_start"
_SEGMENTS = "segments"


def times_continued(sample: Sample) -> int:
    """Return in how many earlier rollouts a part of the response was generated before the sample was aborted."""
    return int(sample.metadata.get(_CONTINUED, 0))


def turn_start(sample: Sample) -> int | None:
    """Return at which of its tokens the turn of the model begins that an abort has cut; None where none was."""
    begin = notes_of(sample).get(_TURN)
    return begin if isinstance(begin, int) else None


def note_turn_start(sample: Sample, begin: int | None) -> None:
    """Set what `turn_start` returns."""
    sample.metadata = _without(sample.metadata, _TURN)
    if begin is not None:
        sample.note(**{_TURN: begin})


def segments_of(sample: Sample) -> list[Sample]:
    """Return what earlier rollouts generated of the trajectory of a data source's sample, as objects of their own; [] if it is
    to be begun."""
    noted = notes_of(sample).get(_SEGMENTS)
    if noted is not None:
        return [Sample.from_dict(segment) for segment in noted]
    return [copy.deepcopy(sample)] if sample.response_length or sample.status in FINISHED else []


def earlier_segments(group: Group) -> Group:
    """Return what earlier rollouts generated for a group that a data source gave."""
    return [segment for sample in group for segment in segments_of(sample)]


def to_continue(segments: Sequence[Sample]) -> Sample | None:
    """Return the segment of a trajectory with which its generate function goes on; None if all are finished."""
    return next((segment for segment in segments if segment.status not in FINISHED), None)


def joined(segments: Sequence[Sample], continued: Sample, made: Sequence[Sample]) -> list[Sample]:
    """Return the segments of a trajectory with what was made of one of them in its place."""
    place = next(place for place, segment in enumerate(segments) if segment is continued)
    return [*segments[:place], *made, *segments[place + 1 :]]


def fresh(sample: Sample) -> Sample:
    """Return a data source's sample as if nothing had been generated. All else that it has stays, also what hooks have put into
    the metadata and attributes of a response that is given up."""
    if not segments_of(sample):
        return sample.changed()
    metadata = {key: value for key, value in sample.metadata.items() if key not in (_START, _CONTINUED)}
    return sample.changed(
        tokens=_prompt(sample),
        response="",
        response_length=0,
        reward=None,
        loss_mask=None,
        rollout_log_probs=None,
        weight_versions=[],
        status=Status.PENDING,
        metadata=_without(_without(metadata, _TURN), _SEGMENTS),
        remove_sample=False,
    )


def resumable(sample: Sample, rollout_id: int, continued: int = 0) -> Sample:
    """Return a segment as the next rollout shall find it: finished or to be continued.

    What an aborted sample has (tokens, log-probs, weight versions) stays.

    Args:
        rollout_id: the rollout that was stopped.
        continued: how often its trajectory has been continued at least.
    """
    metadata = {_START: rollout_id, **sample.metadata}
    if sample.status in FINISHED:
        return sample.changed(metadata=metadata)
    metadata[_CONTINUED] = max(continued, times_continued(sample)) + 1
    return sample.changed(metadata=metadata, status=sample.status if sample.response_length else Status.PENDING)


def stopped(given: Sample, segments: Sequence[Sample], rollout_id: int) -> Sample:
    """Return a trajectory that was stopped as the one sample that goes back to the data source.

    Of segments that are not finished only the first is kept: what a generate function makes of that one takes their place.

    Args:
        given: the sample as it came from the data source.
        segments: what has been generated of it, in this and earlier rollouts.
        rollout_id: the rollout that was stopped.
    """
    unfinished = to_continue(segments)
    kept = [segment for segment in segments if segment is unfinished or segment.status in FINISHED]
    if not any(segment.response_length or segment.status in FINISHED for segment in kept):
        return fresh(given)
    continued = max(map(times_continued, [*segments_of(given), *segments]))
    back = [resumable(segment, rollout_id, continued) for segment in kept]
    prompt = fresh(given)
    if len(back) == 1 and _prompt(back[0]) == prompt.tokens:
        return back[0]
    prompt.metadata = {_START: min(int(segment.metadata[_START]) for segment in back), **prompt.metadata}
    prompt.note(**{_SEGMENTS: [segment.to_dict() for segment in back]})
    return prompt


def put_back(given: Group, results: list[list[Sample]], rollout_id: int, keep: bool, mask_earlier: bool) -> Group:
    """Return a group whose sampling was stopped in the form in which it goes back to the data source.

    Args:
        given: the group as it came from the data source.
        results: for each of its samples what has been generated of its trajectory; [] if its generate function
            has not returned; then what was there before stays.
        rollout_id: the rollout that was stopped.
        keep: whether what was generated is kept (`--partial-rollout`).
        mask_earlier: whether the next rollout trains none of what was generated. A group that is finished would then train
            nothing at all, so it starts afresh.
    """
    is_finished = all(results) and all(s.status in FINISHED for made in results for s in made)
    if not keep or (mask_earlier and is_finished):
        return [fresh(sample) for sample in given]
    return [
        stopped(sample, made or segments_of(sample), rollout_id) for sample, made in zip(given, results, strict=True)
    ]


def mask_known(sample: Sample, known: Sequence[int]) -> Sample:
    """Return the sample with a loss mask that leaves those response tokens out of training that are among the tokens `known`, with
    which it begins; the sample itself where it begins otherwise."""
    if kept(sample, "tokens")[: len(known)] != list(known):
        return sample
    return mask_first(sample, max(0, len(known) - (num_tokens(sample) - sample.response_length)))


def mask_first(sample: Sample, count: int) -> Sample:
    """Return the sample with a loss mask that leaves its first `count` response tokens out of training."""
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    return sample.changed(loss_mask=[0] * count + list(mask[count:]))


def _prompt(sample: Sample) -> list[int]:
    return prompt_ids(sample).tolist()


def _without(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the metadata without what slime itself noted under a key."""
    noted = metadata.get(RESERVED)
    if not isinstance(noted, dict) or key not in noted:
        return metadata
    return {**metadata, RESERVED: {name: value for name, value in noted.items() if name != key}}
