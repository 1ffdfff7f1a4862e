"""A response that is made of turns: what the model generated, and what tools and others put in between.

Called by the methods of `slime_core.sample.Sample`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from slime_core.errors import SampleError

if TYPE_CHECKING:
    from slime_core.sample import Sample

Version = int | str
Number = TypeVar("Number", int, float)

TOKEN_VERSIONS = "weight_versions"
"""Where the answers of a run's own engine name the weights of every token, beside SGLang's `weight_version` for the last."""

_ENDS = {"stop": "completed", "length": "truncated", "abort": "aborted"}
_TO_BE_REPLAYED = {
    **dict.fromkeys(("top_p_token_ids", "top_p_kept_token_ids"), "the tokens that top-p left to choose from"),
    "routed_experts": "the experts that tokens were routed to",
}


def append_turn(
    sample: Sample,
    name: str,
    tokens: Iterable[int] | None,
    log_probs: Iterable[float] | None,
    trainable: bool,
    meta_info: Mapping[str, Any],
) -> str | None:
    """Append tokens to the response of a sample, in place, as `Sample.append_response_tokens` says.

    Args:
        name: how messages speak of the sample.

    Returns:
        the status of the sample after this turn: "completed", "truncated", "aborted"; None where `meta_info` does not say.

    Raises:
        SampleError: what is given does not fit together, or to the sample. The sample is unchanged then.
    """
    if held := next((key for key in _TO_BE_REPLAYED if meta_info.get(key) is not None), None):
        raise SampleError(
            f"The meta_info that was appended to {name} holds {held!r}, {_TO_BE_REPLAYED[held]}. Nothing here replays that "
            "in training; do not ask the server for it."
        )
    ids, given = _numbers(tokens, int) or [], _numbers(log_probs, float)
    if given is not None and len(given) != len(ids):
        raise SampleError(
            f"{len(ids)} tokens and {len(given)} log-probs were appended to {name}; expected equally many."
        )
    if ids and trainable and given is None:
        raise SampleError(
            f"Tokens that are trained were appended to {name} without their log-probs: pass log_probs= too, or "
            "trainable=False for tokens that the model did not generate."
        )
    if ids and not trainable and given is not None:
        raise SampleError(
            f"Log-probs were appended to {name} with trainable=False: tokens that the model did not generate have none."
        )
    before = sample.response_length
    if ids and trainable and sample.rollout_log_probs is None and before:
        raise SampleError(
            f"Tokens with log-probs were appended to {name}, whose {before} response tokens have none: append all of them, or "
            "set rollout_log_probs for those."
        )
    for field in ("loss_mask", "rollout_log_probs"):
        if (length := _length(getattr(sample, field))) not in (None, before):
            raise SampleError(
                f"Tokens were appended to {name}, which has {length} entries of {field} and {before} response tokens; "
                "set them together, or append with append_response_tokens alone."
            )
    sample.weight_versions, new = _versions(sample, len(ids), trainable, meta_info)
    _extend(sample, TOKEN_VERSIONS, new)
    _extend(sample, "tokens", ids)
    sample.response_length += len(ids)
    if ids:
        mask = [1] * before if sample.loss_mask is None else sample.loss_mask
        mask += [int(trainable)] * len(ids)  # a hook may hold the very list
        sample.loss_mask = mask
    if given is not None or ids:
        if sample.rollout_log_probs is None:
            sample.rollout_log_probs = [0.0] * before
        _extend(sample, "rollout_log_probs", given or [0.0] * len(ids))
    reason = meta_info.get("finish_reason")
    return _ENDS.get(reason.get("type", "")) if isinstance(reason, Mapping) else None


def spread_over_turns(versions: list[Version], mask: Sequence[int] | None, length: int) -> list[Version]:
    """Return one weight version for each of `length` response tokens, of a list that may have one for each turn of the model.

    Tokens between two turns get the version of the turn before. A list that is neither is returned as it is.

    Args:
        mask: 1 for the tokens of the model; None: all are.
    """
    if not versions or len(versions) == length or not length:
        return versions
    if len(set(versions)) == 1:
        return versions[:1] * length
    runs = [(bool(trained), len(list(run))) for trained, run in groupby(mask or [1] * length)]
    if sum(trained for trained, _ in runs) != len(versions):
        return versions
    found, turn = list[Version](), -1
    for trained, count in runs:
        turn += trained
        found += [versions[max(turn, 0)]] * count
    return found


def _length(values: Sequence[Any] | None) -> int | None:
    return None if values is None else len(values)


def _extend(sample: Sample, name: str, values: Sequence[Any]) -> None:
    """Add values to a list of the sample: to the very list where nobody else holds it, so that many turns take no longer than their tokens;
    else to a copy, since samples of a group may share a prompt, and copies of a sample all that it has."""
    getattr(sample, name)  # a column becomes a list
    own = vars(sample)
    if type(own[name]) is not list or sys.getrefcount(own[name]) > _HELD_ONCE:
        own[name] = list(own[name])
    own[name] += values


_PROBE: dict[str, list[Any]] = {"": []}
_HELD_ONCE = sys.getrefcount(_PROBE[""])
"""The references to a list that stands in one dict alone, as they are counted here."""


def _versions(
    sample: Sample, count: int, trainable: bool, meta_info: Mapping[str, Any]
) -> tuple[list[Version], list[Version]]:
    """Return the weight versions of the response so far, and those of `count` further tokens; none where those of trained tokens are
    unknown."""
    known, before = sample.weight_versions, sample.response_length
    known = spread_over_turns(known, sample.loss_mask, before)
    if not count:
        return known, []
    given = meta_info.get(TOKEN_VERSIONS)
    version = meta_info.get("weight_version")
    if isinstance(given, list) and len(given) == count:
        new: list[Version] = given
    elif version is not None:
        new = [version] * count
    elif trainable:
        return [], []
    else:
        return known, known[-1:] * count
    if not known and before:
        if any(sample.trained_mask):
            return [], []
        known = new[:1] * before
    return known, new


def _numbers(values: Any, kind: type[Number]) -> list[Number] | None:
    """Return what may be a list, an array or a tensor as a list of plain numbers; None as it is."""
    if values is None:
        return None
    listed = values.reshape(-1).tolist() if hasattr(values, "reshape") else values
    return [kind(value) for value in listed]
