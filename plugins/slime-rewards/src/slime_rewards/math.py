r"""The rewards `math`, `boxed_math` and `deepscaler`: is the answer mathematically equal to the label?

Equality is math-verify's: numbers, fractions, roots, sets, intervals, equations, matrices, LaTeX or plain. It knows
nothing of the question, so it also gives credit for an answer that merely restates it: \boxed{3+4} equals 7. Where the
answer must be a number, `final_answer` is stricter, and needs no other package.
"""

from __future__ import annotations

from importlib.util import find_spec

from slime_core.errors import DataError, PluginError
from slime_core.rollout.boxed import last_box
from slime_core.sample import Sample
from slime_rewards.arguments import MathArguments
from slime_rewards.labels import text_label
from slime_rewards.pool import shared_pool

if find_spec("math_verify") is None:
    raise PluginError(
        "The rewards 'math', 'boxed_math' and 'deepscaler' compare answers with math-verify, which is not installed: "
        "pip install 'slime-rewards[math]'"
    )

TAIL = 2000
"""Characters at the end of a response among which an answer that is not marked is looked for."""


async def math(args: MathArguments, sample: Sample) -> float:
    r"""Return 1.0 when the answer equals the label, else 0.0. The answer is the last `\boxed{…}`, which must be closed; without
    any box, what math-verify finds: an expression that the response calls its answer, else the last one.

    Raises:
        DataError: there is no label, or it is no mathematical expression.
    """
    return await _grade(args, "math", sample, sample.response, box_needed=False)


async def boxed_math(args: MathArguments, sample: Sample) -> float:
    r"""Score as `math` does, but a response without `\boxed{…}` counts 0.

    The generic `boxed_` form of `math` would look for an expression in the text that the box holds. Here all of that text
    is the expression.

    Raises:
        DataError: there is no label, or it is no mathematical expression.
    """
    return await _grade(args, "boxed_math", sample, sample.response, box_needed=True)


async def deepscaler(args: MathArguments, sample: Sample) -> float:
    r"""Score what follows the last `</think>` or, without one, `###Response` as `boxed_math` does; 0.0 when there is
    neither.

    Raises:
        DataError: there is no label, or it is no mathematical expression.
    """
    for mark in ("</think>", "###Response"):
        _, found, solution = sample.response.rpartition(mark)
        if found:
            return await _grade(args, "deepscaler", sample, solution, box_needed=True)
    return 0.0


async def _grade(args: MathArguments, reward: str, sample: Sample, solution: str, box_needed: bool) -> float:
    """Compare the answer that `solution` gives with the label, in a process of its own unless they are the same text.

    Args:
        reward: its name, for messages.
        solution: the part of the response that may hold the answer.
        box_needed: a solution without a box counts 0.
    """
    label = text_label(reward, sample)
    box = last_box(label)
    label = label if box is None or box.content is None else box.content
    box = last_box(solution)
    answer = solution[-TAIL:] if box is None else box.content
    if answer is None or not answer.strip() or (box is None and box_needed):
        return 0.0
    if _bare(answer) == _bare(label):
        return 1.0
    pool = shared_pool("slime_rewards.math_worker:compare", args.math_verify_workers, args.math_verify_timeout)
    verdict = await pool.grade(label, answer, box is not None, item=sample.name)
    if verdict == "unreadable label":
        raise DataError(
            f"The reward {reward!r} compares mathematical expressions, but the label of {sample.name} is none: "
            f"{label[:200]!r}. Use 'exact_match' or 'f1' for answers in words."
        )
    return float(verdict == "equal")


def _bare(expression: str) -> str:
    """Return the expression without dollar signs and blanks around it."""
    return expression.strip().strip("$").strip()
