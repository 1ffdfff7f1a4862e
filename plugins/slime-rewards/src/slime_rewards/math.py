r"""The rewards `math`, `boxed_math`, `deepscaler` and `math_verify`: is the answer the label?

The first three grade as slime does: the answer is marked, and it has been worked out (see `slime_rewards.equality`).
`math_verify` is lenient: it also finds an answer that is not marked, and gives credit for one that merely restates the
question, such as \boxed{3+4} for 7. Where answers are numbers, `final_answer` is the fastest.
"""

from __future__ import annotations

import logging
import re

from slime_core.errors import DataError
from slime_core.rollout.boxed import last_box
from slime_core.sample import Sample
from slime_rewards.answers import TAIL, boxed_answer, given_answer
from slime_rewards.arguments import MathArguments
from slime_rewards.equality import equal
from slime_rewards.labels import text_labels
from slime_rewards.pool import GradingPool, shared_pool

logger = logging.getLogger(__name__)

LONGEST = 500
"""Characters of an answer; a longer one is wrong, unless the label is as long."""

_told: set[str] = set()


async def math(args: MathArguments, sample: Sample) -> float:
    r"""Return 1.0 when the answer is the label, else 0.0. The answer is the last `\boxed{…}`, which must be closed; without any
    box, what the response states in words (`slime_rewards.answers`).

    Raises:
        DataError: there is no label, or one that cannot be compared with.
    """
    return await _grade(args, "math", sample, given_answer(sample.response))


async def boxed_math(args: MathArguments, sample: Sample) -> float:
    r"""Score as `math` does, but a response without `\boxed{…}` counts 0.

    The generic `boxed_` form of `math` would look for a box in the box.

    Raises:
        DataError: there is no label, or one that cannot be compared with.
    """
    return await _grade(args, "boxed_math", sample, boxed_answer(sample.response))


async def deepscaler(args: MathArguments, sample: Sample) -> float:
    r"""Score what follows the last `</think>` or, without one, `###Response` as `boxed_math` does; 0.0 when there is
    neither, which is said once.

    Raises:
        DataError: there is no label, or one that cannot be compared with.
    """
    for mark in (r"</think>", r"###\s*Response"):
        parts = re.split(mark, sample.response)
        if len(parts) > 1:
            return await _grade(args, "deepscaler", sample, boxed_answer(parts[-1]))
    text_labels("deepscaler", sample)
    if "deepscaler" not in _told:
        _told.add("deepscaler")
        logger.warning(
            "The reward 'deepscaler' reads what follows </think> or ###Response, and the response of %s has neither, so it "
            "counts 0; so do all others like it, which are not reported. Use --rm-type math for a model that does not think "
            "in such marks, and note that a response may be cut off before them (--rollout-max-response-len).",
            sample.name,
        )
    return 0.0


async def math_verify(args: MathArguments, sample: Sample) -> float:
    r"""Return 1.0 when the answer is mathematically equal to the label, else 0.0, as math-verify finds and compares both. The
    answer is the last `\boxed{…}`, which must be closed; without any box, an expression that the response calls its answer,
    else the last one.

    Raises:
        DataError: there is no label, or it is no mathematical expression.
    """
    box = last_box(sample.response)
    answer = sample.response[-TAIL:] if box is None else box.content
    for label in _labels("math_verify", sample):
        if answer is None or not answer.strip():
            continue
        if _bare(answer) == _bare(label):
            return 1.0
        verdict = await _pool(args, "compare_leniently").grade(label, answer, box is not None, item=sample.name)
        if verdict == "unreadable label":
            raise DataError(
                f"The reward 'math_verify' compares mathematical expressions, but the label of {sample.name} is none: "
                f"{label[:200]!r}. Use 'math', 'exact_match' or 'f1' for answers in words."
            )
        if verdict == "equal":
            return 1.0
    return 0.0


async def _grade(args: MathArguments, reward: str, sample: Sample, answer: str | None) -> float:
    """Return 1.0 when an answer is one of the labels of the sample, else 0.0. `reward` is named in messages."""
    for label in _labels(reward, sample):
        if answer is not None and await _is_right(args, label, answer, sample.name):
            return 1.0
    return 0.0


async def _is_right(args: MathArguments, label: str, answer: str, item: str) -> bool:
    """Compare an answer with one label; what needs algebra, in a process of its own."""
    if len(answer) > max(LONGEST, 2 * len(label)):
        return False
    try:
        return equal(label, answer, _needs_algebra)
    except _NeedsAlgebra:
        return await _pool(args, "compare").grade(label, answer, item=item) is True
    except RecursionError:  # brackets in brackets in brackets
        return False


class _NeedsAlgebra(Exception):
    """The comparison goes to a process of its own."""


def _needs_algebra(label: str, answer: str) -> bool:
    raise _NeedsAlgebra


def _pool(args: MathArguments, function: str) -> GradingPool:
    return shared_pool(f"slime_rewards.math_worker:{function}", args.math_verify_workers, args.math_verify_timeout)


def _labels(reward: str, sample: Sample) -> list[str]:
    """Return the labels, of each that is a whole solution its answer: what its box holds, or what follows `####`."""
    found = []
    for label in text_labels(reward, sample):
        box = last_box(label)
        marked = re.search(r"^#{4}[^\S\n]*([^#\n].*)\Z", label, re.MULTILINE)
        found.append(box.content if box and box.content else marked[1].strip() if marked else label)
    return found


def _bare(expression: str) -> str:
    """Return the expression without dollar signs and blanks around it."""
    return expression.strip().strip("$").strip()
