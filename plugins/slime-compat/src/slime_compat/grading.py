"""The graders of `slime.rollout.rm_hub`, by the rewards of this run's plugins, which say how answers are compared."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

from slime_compat.waiting import result_of
from slime_core.plugins import Plugins
from slime_core.rollout.boxed import last_box
from slime_core.rollout.surroundings import current
from slime_core.sample import Sample

STRICT_TAIL = 100
"""Characters at the end of a response in which a box must stand that is compared strictly."""


def plugins() -> Plugins:
    """The plugins of the run, or outside of one those that are installed."""
    surroundings = current()
    return surroundings.plugins if surroundings else _installed()


def graded(reward: str, response: str | None, label: Any, metadata: dict[str, Any] | None = None) -> Any:
    """Return what the reward of this name says of a response. Blocks until it does.

    Raises:
        PluginError: no plugin provides it; says which distribution does.
        DataError: the label cannot be compared with.
    """
    surroundings = current()
    args = surroundings.args if surroundings else _default_arguments()
    sample = Sample(response=response or "", label=label, metadata=dict(metadata or {}))
    scored = plugins().select("reward", reward)(args, sample)
    return result_of(scored) if inspect.iscoroutine(scored) else scored


def compute_score(
    solution_str: str, ground_truth: Any, strict_box_verify: bool = False, pause_tokens_index: list[int] | None = None
) -> dict[str, Any]:
    r"""Return {"score": 1.0 or -1.0, "acc", "pred"} of a response by DAPO's rule, the reward `dapo`.

    Args:
        strict_box_verify: the answer is the last `\boxed{…}` within the last `STRICT_TAIL` characters, and must be the ground
            truth letter by letter; "pred" is None without one.
        pause_tokens_index: the last of four positions in the response says where its end begins.
    """
    if not strict_box_verify:
        scored: dict[str, Any] = graded("dapo", solution_str, ground_truth)
        return scored
    start = max(0, pause_tokens_index[-1] - STRICT_TAIL) if pause_tokens_index else -STRICT_TAIL
    box = last_box(solution_str[start:])
    pred = box.content if box else None
    right = pred is not None and pred == str(ground_truth)
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": pred}


def get_deepscaler_rule_based_reward(response: str, label: Any) -> int:
    """Return 1 or 0 by the reward `deepscaler`; 0 without a label."""
    return 0 if _is_empty(label) else int(graded("deepscaler", response, label))


def grade_answer_verl(solution_str: str, ground_truth: Any) -> bool:
    """Whether the boxed answer of a response is the ground truth, by the reward `boxed_math`; False without a ground truth."""
    return not _is_empty(ground_truth) and bool(graded("boxed_math", solution_str, ground_truth) == 1)


def grade_answer(given_answer: str | None, ground_truth: Any) -> bool:
    """Whether an answer, without a box around it, is the ground truth, by the reward `boxed_math`; False without a ground truth."""
    return given_answer is not None and grade_answer_verl(rf"\boxed{{{given_answer}}}", ground_truth)


def extract_answer(passage: str) -> str | None:
    r"""Return what the last `\boxed{…}` of a text holds; None without one that is closed."""
    box = last_box(passage)
    return box.content if box else None


def f1_score(prediction: str | None, ground_truth: Any) -> tuple[float, float, float]:
    """Return (F1 by the reward `f1`, NaN, NaN). That reward does not tell precision and recall."""
    return float(graded("f1", prediction, ground_truth)), math.nan, math.nan


def compute_gpqa_reward(response: str | None, label: Any, metadata: dict[str, Any] | None = None) -> float:
    """Return 1.0 or 0.0 by the reward `gpqa`."""
    return float(graded("gpqa", response, label, metadata))


def _is_empty(label: Any) -> bool:
    return label is None or not str(label).strip()


@cache
def _installed() -> Plugins:
    return Plugins()


@cache
def _default_arguments() -> Any:
    """Arguments of which none is set, for graders that are called outside of a run."""
    from slime_core.arguments.namespace import Namespace

    namespace = Namespace(_installed())
    return namespace.model.model_construct(**{name: option.default for name, option in namespace.options.items()})
