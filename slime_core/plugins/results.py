"""What components may return, checked after each call. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from slime_core.advantage import AdvantageOutputs
from slime_core.loss import LossOutputs
from slime_core.masks import MaskedTokens
from slime_core.sample import RolloutOutput, Sample

Check = Callable[[Any, tuple[Any, ...]], str | None]


def result_problem(kind: str, result: Any, args: tuple[Any, ...]) -> str | None:
    """What is wrong with `result`, as "X; expected Y"; None when it fits.

    Args:
        kind: of the component.
        args: what it was called with.
    """
    check = _CHECKS.get(kind)
    return check(result, args) if check else None


def _reward(result: Any, args: tuple[Any, ...]) -> str | None:
    items = args[1] if len(args) > 1 else None
    if isinstance(items, list):
        if not isinstance(result, (list, tuple)):
            return f"{_shown(result)}; expected a list of {len(items)} rewards, one for each sample"
        if len(result) != len(items):
            return f"{len(result)} rewards for {len(items)} samples; expected one for each, in their order"
        return next((problem for value in result if (problem := _one_reward(value))), None)
    return _one_reward(result)


def _one_reward(value: Any) -> str | None:
    if isinstance(value, dict):
        return None if value else "an empty dict; expected a number or a dict of numbers"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{_shown(value)}; expected a number or a dict of numbers"
    return None if math.isfinite(value) else f"{value}; expected a finite number"


def _dynamic_filter(result: Any, args: tuple[Any, ...]) -> str | None:
    keep = result[0] if isinstance(result, tuple) and len(result) == 2 else getattr(result, "keep", result)
    # A truth value of any library will do, such as the 0-d tensor of slime's own filters.
    if isinstance(keep, bool) or (hasattr(keep, "dtype") and getattr(keep, "size", None) is not None):
        return None
    return f"{_shown(result)}; expected True or False, or a pair of that and a reason"


def _buffer_pop(result: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(result, list) or not all(isinstance(group, list) for group in result):
        return f"{_shown(result)}; expected a list of groups"
    if len(result) > args[3]:
        return f"{len(result)} groups; expected at most {args[3]}"
    return None


def _generate(result: Any, args: tuple[Any, ...]) -> str | None:
    samples = result if isinstance(result, list) else [result]
    if samples and all(isinstance(sample, Sample) for sample in samples):
        return None
    return f"{_shown(result)}; expected a Sample or a list of at least one"


def _instance(kind: type) -> Check:
    def check(result: Any, args: tuple[Any, ...]) -> str | None:
        return None if isinstance(result, kind) else f"{_shown(result)}; expected a {kind.__name__}"

    return check


def _nothing(instead: str) -> Check:
    def check(result: Any, args: tuple[Any, ...]) -> str | None:
        return None if result is None else f"{_shown(result)}; expected None: {instead}"

    return check


def _truth(result: Any, args: tuple[Any, ...]) -> str | None:
    # Functions written for slime may end without a return.
    if result is None or isinstance(result, bool):
        return None
    return f"{_shown(result)}; expected True (it has logged all itself) or False"


def _rewards(result: Any, args: tuple[Any, ...]) -> str | None:
    count = len(args[1])
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(part, (list, tuple)) for part in result):
        return f"{_shown(result)}; expected a pair of lists: raw rewards, and rewards to train with"
    for which, rewards in zip(("raw rewards", "rewards to train with"), result, strict=True):
        if len(rewards) != count:
            return f"{len(rewards)} {which} for {count} samples; expected one for each, in their order"
        if wrong := next((value for value in rewards if not _is_finite_number(value)), None):
            return f"{_shown(wrong)} among the {which}; expected finite numbers"
    return None


def _train_data(result: Any, args: tuple[Any, ...]) -> str | None:
    samples: Sequence[Sample] = args[1]
    if not isinstance(result, dict):
        return f"{_shown(result)}; expected a dict of lists"
    for name in result.keys() & _PER_SAMPLE:
        if not isinstance(result[name], (list, tuple)) or len(result[name]) != len(samples):
            return (
                f"{_shown(result[name])} as {name!r}; expected a list with one entry for each of {len(samples)} samples"
            )
    lengths = result.get("response_lengths", [sample.response_length for sample in samples])
    for index, length in enumerate(lengths):
        for name in result.keys() & {"loss_masks", "rollout_log_probs"}:
            entry = result[name][index]
            if entry is not None and len(entry) != length:
                return f"{len(entry)} {name} for sample {index}; expected {length}, as its response_length is {length}"
        if "tokens" in result and len(result["tokens"][index]) < length:
            return f"{len(result['tokens'][index])} tokens for sample {index}, whose response_length is {length}"
        if "rewards" in result and not _is_finite_number(result["rewards"][index]):
            return f"{_shown(result['rewards'][index])} as reward of sample {index}; expected a finite number"
    return None


def _advantages(result: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(result, AdvantageOutputs):
        return f"{_shown(result)}; expected an AdvantageOutputs"
    wanted = tuple(args[1].loss_mask.shape)
    made = {"advantages": result.advantages} | ({} if result.returns is None else {"returns": result.returns})
    for name, value in made.items():
        if getattr(value, "shape", None) != wanted:
            return f"{name} {_shape(value)}; expected a tensor of shape {wanted}, one for each response token"
        if not bool(value.isfinite().all()):
            bad = sorted(set(args[1].sample_index[~value.isfinite()].tolist()))
            return f"{name} that are NaN or Inf, at samples {bad[:5]} of the rollout; expected finite numbers"
    return None


def _weights(result: Any, args: tuple[Any, ...]) -> str | None:
    # Runs for every micro-batch, so it looks at no value: that would wait for the device.
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        return f"{_shown(result)}; expected a pair: a tensor of weights and a dict of metrics"
    weights, wanted = result[0], tuple(args[1].loss_mask.shape)
    if getattr(weights, "shape", None) != wanted:
        return f"weights {_shape(weights)}; expected a tensor of shape {wanted}, one for each token"
    if weights.requires_grad:
        return "weights with a gradient; expected them detached: they scale the loss and are not trained through"
    return None


_PER_SAMPLE = {"tokens", "response_lengths", "rewards", "loss_masks", "rollout_log_probs"}

_CHECKS: dict[str, Check] = {
    "advantage": _advantages,
    "all_samples_process": _nothing("it looks at the groups, or hands them to the data source"),
    "buffer_pop": _buffer_pop,
    "converter": _instance(dict),
    "dynamic_filter": _dynamic_filter,
    "eval_rollout_log": _truth,
    "generator": _generate,
    "importance_weight": _weights,
    "loss": _instance(LossOutputs),
    "loss_mask": _instance(MaskedTokens),
    "reward": _reward,
    "reward_post_process": _rewards,
    "rollout": _instance(RolloutOutput),
    "rollout_log": _truth,
    "sample_converter": _train_data,
    "sample_filter": _nothing("it sets remove_sample on the samples"),
}


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return _shown(value) if shape is None else f"of shape {tuple(shape)}"


def _shown(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(value).__name__})"
