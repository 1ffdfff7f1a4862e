"""What becomes of groups that were not finished when sampling stopped: how they go back to the data source, and how the
next rollout finds them. Pure functions.

The metadata of a sample that goes back with a response has `start_rollout_id`, the rollout in which the response was
begun, and, if it is to be continued, `times_continued`, how often that has happened. Where the turn began that was cut, stands
under slime's own key.
"""

from __future__ import annotations

from slime_core.sample import RESERVED, Group, Sample, Status

FINISHED = (Status.COMPLETED, Status.TRUNCATED)
"""The states of a sample whose response is not continued."""

_START = "start_rollout_id"
_CONTINUED = "times_continued"
_TURN = "turn_start"


def times_continued(sample: Sample) -> int:
    """Return in how many earlier rollouts a part of the response was generated before the sample was aborted."""
    return int(sample.metadata.get(_CONTINUED, 0))


def turn_start(sample: Sample) -> int | None:
    """Return at which of its tokens the turn of the model begins that an abort has cut; None where none was."""
    noted = sample.metadata.get(RESERVED)
    begin = noted.get(_TURN) if isinstance(noted, dict) else None
    return begin if isinstance(begin, int) else None


def note_turn_start(sample: Sample, begin: int | None) -> None:
    """Set what `turn_start` returns."""
    noted = sample.metadata.get(RESERVED)
    kept = {key: value for key, value in (noted if isinstance(noted, dict) else {}).items() if key != _TURN}
    sample.metadata = {**sample.metadata, RESERVED: kept if begin is None else {**kept, _TURN: begin}}


def fresh(sample: Sample) -> Sample:
    """Return the prompt of the sample alone, as if nothing had been generated."""
    made = Sample(
        group_index=sample.group_index,
        index=sample.index,
        prompt=sample.prompt,
        tokens=sample.tokens[: len(sample.tokens) - sample.response_length],
        label=sample.label,
        metadata={key: value for key, value in sample.metadata.items() if key not in (_START, _CONTINUED)},
    )
    if turn_start(made) is not None:
        note_turn_start(made, None)
    return made


def resumable(sample: Sample, rollout_id: int) -> Sample:
    """Return the sample as the next rollout shall find it: finished, to be continued, or fresh if it has no response.

    What an aborted sample has (tokens, log-probs, weight versions) stays.

    Args:
        rollout_id: the rollout that was stopped.
    """
    if sample.status not in FINISHED and not sample.response_length:
        return fresh(sample)
    metadata = {_START: rollout_id, **sample.metadata}
    if sample.status is Status.ABORTED:
        metadata[_CONTINUED] = times_continued(sample) + 1
    return sample.changed(metadata=metadata)


def put_back(given: Group, results: list[list[Sample]], rollout_id: int, keep: bool, mask_earlier: bool) -> Group:
    """Return a group whose sampling was stopped in the form in which it goes back to the data source.

    Args:
        given: the group as it came from the data source.
        results: for each of its samples the samples that its generate function has returned; [] if it has not returned.
        rollout_id: the rollout that was stopped.
        keep: whether what was generated is kept (`--partial-rollout`).
        mask_earlier: whether the next rollout trains none of what was generated. A group that is finished would then train
            nothing at all, so it starts afresh.
    """
    is_finished = all(results) and all(s.status in FINISHED for made in results for s in made)
    if not keep or (mask_earlier and is_finished):
        return [fresh(sample) for sample in given]
    pairs = zip(given, results, strict=True)
    return [resumable(sample, rollout_id) for original, made in pairs for sample in made or [fresh(original)]]


def mask_first(sample: Sample, count: int) -> Sample:
    """Return the sample with a loss mask that leaves its first `count` response tokens out of training."""
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    return sample.changed(loss_mask=[0] * count + list(mask[count:]))
