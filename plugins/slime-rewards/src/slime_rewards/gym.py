"""The reward `reasoning_gym`: answers to tasks of the package reasoning-gym, graded by the task's own scorer.

The rows come from `slime tasks`. Scorers give credit to texts that contain the answer, so it is cut out of the response
first.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

from slime_core.errors import DataError, PluginError
from slime_core.rollout.boxed import last_box
from slime_core.sample import RESERVED, Sample
from slime_rewards.arguments import ReasoningGymArguments
from slime_rewards.numbers import last_number_text, only_number
from slime_rewards.pool import shared_pool

KEY = "reasoning_gym"
"""The key of a row's metadata under which `slime tasks` stores what grading needs."""

MISSING = "which is not installed: pip install 'slime-rewards[reasoning-gym]'"

if find_spec("reasoning_gym") is None:
    raise PluginError(f"The reward 'reasoning_gym' uses the scorers of reasoning-gym, {MISSING}")

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LEAD = re.compile(r"^\W*(?:the\s+)?(?:final\s+)?answer(?:\s+is|\s*:)[\s:]*", re.IGNORECASE)


async def reasoning_gym(args: ReasoningGymArguments, sample: Sample) -> float:
    """Return the score, in [0, 1], that the task's scorer gives to `extract_answer` of the response.

    Raises:
        DataError: the sample's metadata does not say which task it is of.
    """
    task = sample.metadata.get(KEY)
    if not isinstance(task, dict) or not {"task", "settings", "question", "metadata"} <= set(task):
        raise DataError(
            f"The reward 'reasoning_gym' needs metadata[{KEY!r}] as `slime tasks` writes it, but {sample.name} has "
            f"{sorted(sample.metadata.keys() - {RESERVED})}. Make the data with `slime tasks NAME`, and give --label-key label."
        )
    label = None if sample.label is None else str(sample.label)
    answer = extract_answer(sample.response, label)
    if not answer:
        return 0.0
    if answer == label:
        return 1.0
    entry = {"question": task["question"], "answer": label, "metadata": task["metadata"]}
    pool = shared_pool("slime_rewards.gym_worker:score", args.reasoning_gym_workers, args.reasoning_gym_timeout)
    return float(await pool.grade(task["task"], task["settings"], entry, answer, item=sample.name) or 0.0)


def extract_answer(response: str, label: str | None) -> str | None:
    r"""Return what a response gives as its answer, or None.

    The last `<answer>…</answer>` or, without one, the last `\boxed{…}`. An unmarked answer has the form of the label: it
    is the last number where that is a number, else as many last lines as the label has, without "The answer is" and a
    closing full stop. Reasoning up to `</think>` does not count.
    """
    text = response.rpartition("</think>")[2].strip()
    marked: list[str] = _TAG.findall(text)
    if marked:
        return marked[-1].strip()
    if (box := last_box(text)) is not None:
        return None if box.content is None else box.content.strip()
    if label is not None and only_number(label) is not None:
        return last_number_text(text)
    lines = text.splitlines()[-(label or "").count("\n") - 1 :]
    answer = _LEAD.sub("", "\n".join(lines)).strip().strip("*`").strip()
    return answer if label is None or label.endswith(".") else answer.removesuffix(".")


_SUM = {"task": "chain_sum", "settings": {}, "question": "3 + 4 =", "metadata": {}}
EXAMPLES = {
    "reasoning_gym": [
        Sample(index=i, response=response, label="7", metadata={KEY: _SUM})
        for i, response in enumerate(("3 + 4 = 7", "3 + 4 = 8", ""))
    ]
}
"""For `slime plugins check`: samples of a task."""
